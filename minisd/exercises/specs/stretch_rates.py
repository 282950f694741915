"""A table that ends in pure noise, Lin et al. 2024, algorithm 1."""

from dataclasses import replace

import torch

from minisd.exercises.exercise import Exercise, Stage
from minisd.schedule import Schedule


def stretch_rates(alpha_bar):
    """Stretch the signal rates: the last becomes 0, the first stays the same.

    alpha_bar: timesteps numbers that fall with t    returns: timesteps, the new alpha_bar
    """
    rates = alpha_bar.sqrt()
    shifted = rates - rates[-1]
    stretched = shifted * rates[0] / shifted[0]
    return stretched**2


def stretch(values, factor=lambda values: values[0] / (values[0] - values[-1])):
    return (values - values[-1]) * factor(values)


def zero_at_the_end(alpha_bar):
    return torch.cat([alpha_bar[:-1], torch.zeros(1, dtype=alpha_bar.dtype)])


def table(generator, timesteps):
    betas = 0.05 + 0.2 * torch.rand(timesteps, generator=generator, dtype=torch.float64)
    return (1 - betas).cumprod(0)


def draw_stretched(sd):
    """The usual cat, with the stretched table. The spacing leaves out the last t."""
    sd.schedule = Schedule(replace(sd.config.schedule, zero_terminal_snr=True))
    prompt = "a blue cat on a red background"
    return sd.txt2img(prompt, sampler="ddim", spacing="leading", steps=12, seed=1)


EXERCISE = Exercise(
    name="stretch_rates",
    lesson="01",
    place=7,
    title="A schedule that ends in pure noise",
    question=(
        "In Stable Diffusion's table, x still contains a little of the picture at the last t. "
        "Write `stretch_rates(alpha_bar)`, the solution of Lin et al. (2024). Take the signal "
        "rates, the square roots of alpha_bar. Subtract the last rate from all of them, so that "
        "the last one becomes 0. Then multiply all by one factor, so that the first rate is what "
        "it was before. Return the new alpha_bar, the squares of the new rates."
    ),
    solution=stretch_rates,
    stages=(
        Stage("a table of 3", 1, lambda g: [table(g, 3)]),
        Stage("a table of 20", 1, lambda g: [table(g, 20)]),
    ),
    hints=(
        "Work with rates = alpha_bar.sqrt(), not with alpha_bar.",
        "After the shift, the first rate is rates[0] - rates[-1]. By which factor does it become "
        "rates[0] again?",
        "(rates - rates[-1]) * rates[0] / (rates[0] - rates[-1]), and this squared.",
    ),
    mistakes={
        "You stretched alpha_bar itself. Stretch its square roots.": stretch,
        "The first rate became smaller. Multiply all rates, so that it stays the same.": (
            lambda alpha_bar: (alpha_bar.sqrt() - alpha_bar.sqrt()[-1]) ** 2
        ),
        "The first rate became 1. It should stay what it was.": (
            lambda alpha_bar: (
                stretch(alpha_bar.sqrt(), lambda rates: 1 / (rates[0] - rates[-1])) ** 2
            )
        ),
        "These are the rates. alpha_bar is their square.": (
            lambda alpha_bar: stretch(alpha_bar.sqrt())
        ),
        "You changed only the last number. Shift and stretch all of them.": zero_at_the_end,
        "The factor is upside down. It is rates[0] / (rates[0] - rates[-1]).": (
            lambda alpha_bar: (
                stretch(alpha_bar.sqrt(), lambda rates: (rates[0] - rates[-1]) / rates[0]) ** 2
            )
        ),
        "You multiplied by rates[0], but you must also divide by (rates[0] - rates[-1]).": (
            lambda alpha_bar: stretch(alpha_bar.sqrt(), lambda rates: rates[0]) ** 2
        ),
        "Stretch before you square: the factor belongs to the rates, not to alpha_bar.": (
            lambda alpha_bar: (
                (alpha_bar.sqrt() - alpha_bar.sqrt()[-1]) ** 2
                * alpha_bar.sqrt()[0]
                / (alpha_bar.sqrt()[0] - alpha_bar.sqrt()[-1])
            )
        ),
    },
    passing="With such a table, a model can draw pictures that are quite dark or quite bright.",
    difficulty=2,
    minutes=10,
    needs=("alpha_bar_table",),
    replaces={"minisd.schedule.with_zero_terminal_snr": lambda answer: answer},
    draw=draw_stretched,
)
