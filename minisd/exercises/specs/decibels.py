"""Warm-up: how similar are two pictures?"""

import torch

from minisd.exercises.exercise import Exercise, Stage, normal


def decibels(drawn, real):
    """The peak signal-to-noise ratio of each picture, in dB.

    drawn, real: b c h w, numbers from -1 to 1    returns: b
    """
    error = ((drawn - real) ** 2).mean(dim=(1, 2, 3))
    return 10 * torch.log10(2**2 / error)


def peak_of_1(drawn, real):
    return decibels(2 * drawn, 2 * real)


def peak_not_squared(drawn, real):
    return decibels(2**0.5 * drawn, 2**0.5 * real)


def natural_logarithm(drawn, real):
    return decibels(drawn, real) * torch.log(torch.tensor(10.0, dtype=torch.float64))


def factor_20(drawn, real):
    return 2 * decibels(drawn, real)


def without_factor(drawn, real):
    return decibels(drawn, real) / 10


def error_above(drawn, real):
    return -decibels(drawn, real)


def one_number(drawn, real):
    return 10 * torch.log10(4 / ((drawn - real) ** 2).mean())


def mean_of_decibels(drawn, real):
    return decibels(drawn, real).mean()


def sum_of_squares(drawn, real):
    return 10 * torch.log10(4 / ((drawn - real) ** 2).sum(dim=(1, 2, 3)))


def absolute_error(drawn, real):
    return 10 * torch.log10(4 / (drawn - real).abs().mean(dim=(1, 2, 3)))


def logarithm_of_each(drawn, real):
    return (10 * torch.log10(4 / (drawn - real) ** 2)).mean(dim=(1, 2, 3))


def draw_inputs(*shape):
    return lambda g: [normal(g, *shape).tanh(), normal(g, *shape).tanh()]


EXERCISE = Exercise(
    name="decibels",
    lesson="04",
    place=1,
    title="How similar are two pictures?",
    question=(
        "Write `decibels(drawn, real)`, the peak signal-to-noise ratio of each picture: 10 times "
        "the logarithm to the base 10 of (peak squared / error). The error is the mean of the "
        "squared differences over all numbers of one picture. The numbers go from -1 to 1, so "
        "the peak (the largest possible difference) is 2. Return one number for each picture."
    ),
    solution=decibels,
    stages=(
        Stage("a picture of one number", 1, draw_inputs(1, 1, 1, 1)),
        Stage("two pictures", 1, draw_inputs(2, 3, 4, 5)),
    ),
    hints=(
        "Three steps: the squared differences, their mean, the logarithm.",
        "The mean of each picture is .mean(dim=(1, 2, 3)): over channels, height and width, but "
        "not over the batch.",
        "10 * torch.log10(4 / error), because the peak squared is 4.",
    ),
    mistakes={
        "The peak is 2, because the numbers go from -1 to 1. You used 1.": peak_of_1,
        "The peak must be squared: 2 * 2 = 4.": peak_not_squared,
        "This is the natural logarithm. Use torch.log10.": natural_logarithm,
        "The factor is 20. It should be 10, because the error is squared already.": factor_20,
        "The factor 10 is missing.": without_factor,
        "The error is divided by the peak. Divide the peak squared by the error.": error_above,
        "The mean goes over the whole batch. Each picture has its own error.": one_number,
        "Return one number for each picture, not their mean.": mean_of_decibels,
        "You took the sum of the squares, not their mean.": sum_of_squares,
        "The differences are not squared.": absolute_error,
        "The logarithm comes before the mean. Take the mean first.": logarithm_of_each,
    },
    passing="Now you can say how much an autoencoder loses. 10 dB more means a tenth of the error.",
    difficulty=1,
    minutes=10,
)
