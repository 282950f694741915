"""The primer's puzzle 9: layer norm."""

import torch.nn.functional as F
from einops import rearrange

from minisd.exercises.exercise import Exercise, Stage, normal


def layer_norm(x):
    """Scale each token to mean 0 and variance 1.

    x: b n c    returns: b n c
    """
    mean = x.mean(dim=-1, keepdim=True)
    variance = x.var(dim=-1, correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


def subtract_mean(x):
    return x - x.mean(dim=-1, keepdim=True)


def spread(x, correction=0):
    return x.std(dim=-1, correction=correction, keepdim=True)


def over_tokens(x):
    return rearrange(layer_norm(rearrange(x, "b n c -> b c n")), "b c n -> b n c")


EXERCISE = Exercise(
    name="layer_norm",
    lesson="0b",
    place=9,
    title="Layer norm",
    question=(
        "Write `layer_norm(x)`. Give each token mean 0 and variance 1: subtract the mean of its c "
        "channels, and divide by the square root of (their variance + 1e-5). The variance is the "
        "mean of the squared distances from the mean. There are no trained numbers w and b."
    ),
    solution=layer_norm,
    stages=(
        Stage("one token", 1, lambda g: [normal(g, 1, 1, 5) + 2]),
        Stage("two samples of 4 small tokens", 1, lambda g: [normal(g, 2, 4, 5) / 100]),
    ),
    hints=(
        "The channels are the last axis. keepdim=True keeps it, so that it can stretch again.",
        "x.var(dim=-1, correction=0, keepdim=True) divides by c. Without correction=0, it divides "
        "by c - 1.",
        "Subtract x.mean(dim=-1, keepdim=True). Then divide by (variance + 1e-5).sqrt().",
    ),
    mistakes={
        "torch's var divides by n - 1, but a norm divides by n: set correction=0.": (
            lambda x: subtract_mean(x) / (spread(x, 1) ** 2 + 1e-5).sqrt()
        ),
        "1e-5 belongs under the square root.": lambda x: subtract_mean(x) / (spread(x) + 1e-5),
        "torch's std divides by n - 1, and 1e-5 belongs under the square root.": (
            lambda x: subtract_mean(x) / (spread(x, 1) + 1e-5)
        ),
        "1e-5 is not added to the variance.": lambda x: subtract_mean(x) / spread(x),
        "torch's std divides by n - 1, and 1e-5 is missing.": lambda x: (
            subtract_mean(x) / spread(x, 1)
        ),
        "You divided by the variance. Take its square root first.": (
            lambda x: subtract_mean(x) / (spread(x) ** 2 + 1e-5)
        ),
        "The mean is not subtracted.": lambda x: x / (spread(x) ** 2 + 1e-5).sqrt(),
        "Only the mean is subtracted. Now divide by the square root of (variance + 1e-5).": (
            subtract_mean
        ),
        "Mean and variance go over the tokens. They should go over the channels.": over_tokens,
        "Mean and variance go over the whole sample. Each token has its own.": (
            lambda x: F.layer_norm(x, x.shape[1:])
        ),
        "Mean and variance go over all numbers. Each token has its own.": (
            lambda x: F.layer_norm(x, x.shape)
        ),
        "Keep the axis of the channels in mean and variance: keepdim=True.": (
            lambda x: (x - x.mean(dim=-1)) / (x.var(dim=-1, correction=0) + 1e-5).sqrt()
        ),
    },
    passing="The text transformer does this to each token separately.",
    difficulty=2,
    minutes=6,
)
