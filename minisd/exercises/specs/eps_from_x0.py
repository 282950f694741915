"""From a predicted picture back to the noise."""

import torch

from minisd import guidance
from minisd.exercises.calls import Made
from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.schedule import Prediction


def eps_from_x0(x, x0, level):
    """The noise in x, if the picture in it is x0.

    x: b c h w, noisy    x0: b c h w, the picture
    level: has level.signal_rate and level.noise_rate    returns: b c h w
    """
    return (x - level.signal_rate * x0) / level.noise_rate


def inputs(*shape):
    def draw(g):
        sigma = 0.6 + torch.rand(1, generator=g).item()
        return [*normal(g, 2, *shape), Made("level", {"sigma": sigma})]

    return draw


def as_interpret(answer):
    """guidance.interpret, which finds eps from x0 by the answer."""

    def interpret(objective, x, level, guided, uncond, cond):
        x0 = guidance.x0_from_eps(x, guided, level)
        return Prediction(x0, answer(x, x0, level), uncond, cond)

    return interpret


EXERCISE = Exercise(
    name="eps_from_x0",
    lesson="02",
    place=2,
    title="From x0 to eps",
    question=(
        "A noisy x is signal_rate * x0 + noise_rate * eps. Now the picture x0 is known. Write "
        "`eps_from_x0(x, x0, level)`: solve this equation for eps. The two rates are "
        "`level.signal_rate` and `level.noise_rate`."
    ),
    solution=eps_from_x0,
    stages=(
        Stage("one number", 1, inputs(1, 1, 1, 1)),
        Stage("two latents", 1, inputs(2, 4, 3, 5)),
    ),
    hints=(
        "First bring signal_rate * x0 to the other side.",
        "x - signal_rate * x0 is noise_rate * eps.",
        "Divide (x - level.signal_rate * x0) by level.noise_rate.",
    ),
    mistakes={
        "Divide by the noise rate: what is left is noise_rate * eps.": (
            lambda x, x0, level: x - level.signal_rate * x0
        ),
        "You multiplied by the noise rate. Divide by it.": (
            lambda x, x0, level: (x - level.signal_rate * x0) * level.noise_rate
        ),
        "x0 must be multiplied by the signal rate before you subtract it.": (
            lambda x, x0, level: (x - x0) / level.noise_rate
        ),
        "This is x - x0. Both rates are missing.": lambda x, x0, level: x - x0,
        "The two rates are swapped: this formula is the one for x0.": (
            lambda x, x0, level: (x - level.noise_rate * x0) / level.signal_rate
        ),
        "x0 is added. Subtract it.": (
            lambda x, x0, level: (x + level.signal_rate * x0) / level.noise_rate
        ),
        "You divided by the signal rate. Divide by the noise rate.": (
            lambda x, x0, level: (x - level.signal_rate * x0) / level.signal_rate
        ),
        "(x - x0) / sigma is right for x0 + sigma * eps. Here, x0 is multiplied by a rate too.": (
            lambda x, x0, level: (x - x0) / level.sigma
        ),
        "Put x - signal_rate * x0 into brackets, then divide.": (
            lambda x, x0, level: x - level.signal_rate * x0 / level.noise_rate
        ),
        "The sign is wrong: it is x minus the picture.": (
            lambda x, x0, level: (level.signal_rate * x0 - x) / level.noise_rate
        ),
        "You divided by the squared noise rate. Divide by noise_rate itself.": (
            lambda x, x0, level: (x - level.signal_rate * x0) / level.noise_rate**2
        ),
    },
    passing=(
        "So x0 and eps hold the same information: with x and one of them, you can compute the "
        "other."
    ),
    difficulty=1,
    minutes=5,
    needs=("x0_from_eps",),
    in_picture={"minisd.guidance.interpret": as_interpret},
    draw=draw_cat,
)
