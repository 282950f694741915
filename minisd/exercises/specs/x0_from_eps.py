"""From the predicted noise to the predicted picture, Ho et al. 2020, eq. 15."""

import torch

from minisd.exercises.calls import Made
from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, normal


def x0_from_eps(x, eps, level):
    """The picture that is left if the noise is removed from x.

    x: b c h w, noisy    eps: b c h w, the noise in it
    level: has level.signal_rate and level.noise_rate    returns: b c h w
    """
    return (x - level.noise_rate * eps) / level.signal_rate


def inputs(*shape):
    def draw(g):
        sigma = 0.6 + torch.rand(1, generator=g).item()
        return [*normal(g, 2, *shape), Made("level", {"sigma": sigma})]

    return draw


EXERCISE = Exercise(
    name="x0_from_eps",
    lesson="02",
    place=1,
    title="From eps to x0",
    question=(
        "A noisy x is signal_rate * x0 + noise_rate * eps. Write `x0_from_eps(x, eps, level)`: "
        "solve this equation for x0. The two rates are `level.signal_rate` and "
        "`level.noise_rate`."
    ),
    solution=x0_from_eps,
    stages=(
        Stage("one number", 1, inputs(1, 1, 1, 1)),
        Stage("two latents", 1, inputs(2, 4, 3, 5)),
    ),
    hints=(
        "First bring noise_rate * eps to the other side.",
        "x - noise_rate * eps is signal_rate * x0.",
        "Divide (x - level.noise_rate * eps) by level.signal_rate.",
    ),
    mistakes={
        "Divide by the signal rate: what is left is signal_rate * x0.": (
            lambda x, eps, level: x - level.noise_rate * eps
        ),
        "You multiplied by the signal rate. Divide by it.": (
            lambda x, eps, level: (x - level.noise_rate * eps) * level.signal_rate
        ),
        "The noise is added. Subtract it.": (
            lambda x, eps, level: (x + level.noise_rate * eps) / level.signal_rate
        ),
        "The two rates are swapped: the noise rate belongs to eps.": (
            lambda x, eps, level: (x - level.signal_rate * eps) / level.noise_rate
        ),
        "eps must be multiplied by the noise rate before you subtract it.": (
            lambda x, eps, level: (x - eps) / level.signal_rate
        ),
        "This is x - eps. Both rates are missing.": lambda x, eps, level: x - eps,
        "x must be divided by the signal rate too: put x - noise_rate * eps into brackets.": (
            lambda x, eps, level: x - level.noise_rate * eps / level.signal_rate
        ),
        "You divided by alpha_bar. The signal rate is its square root.": (
            lambda x, eps, level: (x - level.noise_rate * eps) / level.alpha_bar
        ),
        "The noise rate is squared here. Take noise_rate itself.": (
            lambda x, eps, level: (x - level.noise_rate**2 * eps) / level.signal_rate
        ),
        "The sign is wrong: it is x minus the noise.": (
            lambda x, eps, level: (level.noise_rate * eps - x) / level.signal_rate
        ),
        "You multiplied eps by sigma. Multiply it by the noise rate.": (
            lambda x, eps, level: (x - level.sigma * eps) / level.signal_rate
        ),
    },
    passing="At every step, a sampler turns the network's prediction into x0 in this way.",
    difficulty=1,
    minutes=5,
    replaces={"minisd.guidance.x0_from_eps": lambda answer: answer},
    draw=draw_cat,
    in_lesson=True,
)
