"""The primer's puzzle 12: variances add up."""

import torch

from minisd.exercises.exercise import Exercise, Stage


def noise_rate(signal_rate):
    """The r that gives signal_rate * x + r * noise the variance 1.

    signal_rate: a number from 0 to 1    returns: a number
    """
    return (1 - signal_rate**2) ** 0.5


EXERCISE = Exercise(
    name="noise_rate",
    lesson="0b",
    place=12,
    title="The noise that keeps the variance",
    question=(
        "x and noise are independent, and both have variance 1. Write `noise_rate(signal_rate)`. "
        "Return the positive number r for which signal_rate * x + r * noise has variance 1 too."
    ),
    solution=noise_rate,
    stages=(Stage("one rate", 1, lambda g: [0.3 + 0.1 * torch.rand(1, generator=g).item()]),),
    hints=(
        "A number times a has a * a times the variance. Variances of independent numbers add up.",
        "So signal_rate squared plus r squared must be 1.",
        "r squared is 1 - signal_rate squared. Take the square root: ... ** 0.5.",
    ),
    mistakes={
        "Make the variances add up to 1, not the standard deviations.": lambda rate: 1 - rate,
        "This is the variance of r * noise. Take the square root.": lambda rate: 1 - rate**2,
        "Square signal_rate before you subtract it.": lambda rate: (1 - rate) ** 0.5,
        "Square signal_rate before you subtract it, not the difference.": (
            lambda rate: (1 - rate) ** 2
        ),
        "Subtract the square of signal_rate from 1. You added it.": (
            lambda rate: (1 + rate**2) ** 0.5
        ),
        "You subtracted 1 from the square. Subtract the square from 1.": lambda rate: rate**2 - 1,
        "This is the ratio of the two rates. Return r itself.": (
            lambda rate: (1 - rate**2) ** 0.5 / rate
        ),
    },
    passing="Variances add up, standard deviations do not. In the schedule, r is the noise rate.",
    difficulty=1,
    minutes=4,
)
