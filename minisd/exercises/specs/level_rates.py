"""The two rates of a noise level."""

import math

import torch

from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage


def level_rates(sigma):
    """The signal rate and the noise rate of a level.

    sigma: noise rate / signal rate, a number from 0 to infinity    returns: a tuple of two numbers
    """
    signal_rate = (1 + sigma**2) ** -0.5
    noise_rate = (1 - signal_rate**2) ** 0.5
    return signal_rate, noise_rate


def variances(sigma):
    alpha_bar = 1 / (1 + sigma**2)
    return alpha_bar, 1 - alpha_bar


def some_sigma(generator):
    return [0.5 + torch.rand(1, generator=generator).item()]


def signal_rate_property(answer):
    return property(lambda level: float(answer(level.sigma)[0]))


def noise_rate_property(answer):
    return property(lambda level: float(answer(level.sigma)[1]))


def alpha_bar_property(answer):
    return property(lambda level: float(answer(level.sigma)[0]) ** 2)


EXERCISE = Exercise(
    name="level_rates",
    lesson="01",
    place=3,
    title="The rates of a level",
    question=(
        "A noisy x is signal_rate * x0 + noise_rate * eps. The squares of the two rates add up to "
        "1, and sigma is noise_rate / signal_rate. Write `level_rates(sigma)`. Return the signal "
        "rate and the noise rate, in this order. sigma is a plain number. It may be 0 (no noise), "
        "and it may be infinite (nothing but noise)."
    ),
    solution=level_rates,
    stages=(
        Stage("some sigma", 1, some_sigma),
        Stage("no noise: sigma 0", 1, lambda g: [0.0]),
        Stage("nothing but noise: an infinite sigma", 1, lambda g: [math.inf]),
    ),
    hints=(
        "noise_rate is sigma * signal_rate. Put this into signal_rate squared + noise_rate "
        "squared = 1, and solve it for signal_rate.",
        "signal_rate is 1 / the square root of (1 + sigma squared).",
        "Infinity times 0 is not a number. So take the noise rate from the sum of squares: the "
        "root of (1 - signal_rate squared).",
    ),
    mistakes={
        "Infinity times 0 is not a number. Take the noise rate from the sum of squares.": (
            lambda sigma: (level_rates(sigma)[0], sigma * level_rates(sigma)[0])
        ),
        "At sigma 0, you divide by 0. Take the noise rate from the sum of squares.": (
            lambda sigma: (level_rates(sigma)[0], (1 + sigma**-2) ** -0.5)
        ),
        "At sigma 0, you divide by 0: there, the noise rate is 0.": (
            lambda sigma: (level_rates(sigma)[0], (1 + 1 / sigma**2) ** -0.5)
        ),
        "These are the squares of the rates. Take the square roots.": variances,
        "Your rates add up to 1. Their squares should add up to 1.": (
            lambda sigma: (1 / (1 + sigma), 1 - 1 / (1 + sigma))
        ),
        "The signal rate is not 1 / (1 + sigma). The squares of the rates add up to 1.": (
            lambda sigma: (1 / (1 + sigma), sigma / (1 + sigma))
        ),
        "The noise rate is not 1 - signal_rate. The squares add up to 1.": (
            lambda sigma: (level_rates(sigma)[0], 1 - level_rates(sigma)[0])
        ),
        "The two rates are swapped: the signal rate comes first.": (
            lambda sigma: level_rates(sigma)[::-1]
        ),
        "sigma is not the noise rate. It is noise_rate / signal_rate.": (
            lambda sigma: (level_rates(sigma)[0], sigma)
        ),
        "sigma is not the noise rate. So the signal rate is not the root of (1 - sigma squared).": (
            lambda sigma: ((1 - sigma**2) ** 0.5, sigma)
        ),
        "Only the signal rate has its square root. The noise rate needs one too.": (
            lambda sigma: (level_rates(sigma)[0], 1 - level_rates(sigma)[0] ** 2)
        ),
        "This is the root of (1 + sigma squared). The signal rate is 1 divided by it.": (
            lambda sigma: ((1 + sigma**2) ** 0.5, sigma * (1 + sigma**2) ** 0.5)
        ),
    },
    passing="Every sampler uses these rates at every step, and so does the formula for x0.",
    difficulty=2,
    minutes=10,
    replaces={
        "minisd.schedule.Level.signal_rate": signal_rate_property,
        "minisd.schedule.Level.noise_rate": noise_rate_property,
        "minisd.schedule.Level.alpha_bar": alpha_bar_property,
    },
    draw=draw_cat,
)
