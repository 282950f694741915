"""The primer's puzzle 11: a softmax that stays finite."""

import torch

from minisd.exercises.exercise import Exercise, Stage, normal


def softmax(scores):
    """The softmax of each row, also for very large scores.

    scores: n m    returns: n m
    """
    shifted = scores - scores.amax(dim=1, keepdim=True)
    powers = shifted.exp()
    return powers / powers.sum(dim=1, keepdim=True)


def shares(scores, dim=1):
    return scores.exp() / scores.exp().sum(dim=dim, keepdim=True)


def large_rows(generator):
    """Four rows of large scores. The first row is far below the others."""
    rows = torch.tensor([-3000.0, 0, 500, 1000], dtype=torch.float64)
    return [500 * normal(generator, 4, 5) + rows[:, None]]


EXERCISE = Exercise(
    name="softmax",
    lesson="0b",
    place=11,
    title="A softmax that stays finite",
    question=(
        "Write `softmax(scores)`. Each row of the result holds exp(score) / the sum of exp(score) "
        "over the row, so it adds up to 1. It must also be right for scores of 1000 and of -1000, "
        "where exp() is too large or too small for a number. Do not call `.softmax()`."
    ),
    solution=softmax,
    stages=(
        Stage("small scores", 1, lambda g: [normal(g, 4, 5)]),
        Stage("very large and very small scores", 1, large_rows),
    ),
    hints=(
        "If you subtract a number from all scores of a row, the softmax of the row stays the same.",
        "Subtract the largest score of each row: scores.amax(dim=1, keepdim=True). Then the "
        "largest power is exp(0) = 1.",
        "Subtract, take .exp(), and divide by the sum over dim 1 with keepdim=True.",
    ),
    mistakes={
        "exp() of a large score is infinite. First subtract the largest score.": shares,
        "Here, each column adds up to 1. Each row should add up to 1.": (
            lambda scores: scores.softmax(0)
        ),
        "Each row has its own largest score. You subtracted the largest score of the table.": (
            lambda scores: shares(scores - scores.max())
        ),
        "You subtracted the mean of each row. Subtract its largest score.": (
            lambda scores: shares(scores - scores.mean(dim=1, keepdim=True))
        ),
        "The whole table adds up to 1. Each row should add up to 1.": (
            lambda scores: scores.flatten().softmax(0).reshape(scores.shape)
        ),
        "exp() is missing. Apply it to the scores first.": (
            lambda scores: scores / scores.sum(dim=1, keepdim=True)
        ),
        "Divide each row by its sum.": (
            lambda scores: (scores - scores.amax(dim=1, keepdim=True)).exp()
        ),
        "Divide by the sum of the row, not by its largest number.": (
            lambda scores: scores.exp() / scores.exp().amax(dim=1, keepdim=True)
        ),
        "Keep the axis in the sum: keepdim=True.": (
            lambda scores: scores.exp() / scores.exp().sum(dim=1)
        ),
        "This is the logarithm of the softmax.": lambda scores: scores.log_softmax(dim=1),
    },
    passing=(
        "If you subtract the largest score, the softmax stays the same, and exp() stays finite."
    ),
    difficulty=2,
    minutes=6,
)
