"""The primer's puzzle 5: broadcasting, each sample gets its own share of noise."""

import torch
from einops import rearrange

from minisd.exercises.exercise import Exercise, Stage, normal


def mix(x0, noise, share):
    """Compute share * x0 + (1 - share) * noise.

    x0, noise: b c h w    share: b, one number for each sample    returns: b c h w
    """
    share = rearrange(share, "b -> b 1 1 1")
    return share * x0 + (1 - share) * noise


def spread_first(formula):
    """The formula with a share of the shape b 1 1 1."""
    return lambda x0, noise, share: formula(x0, noise, rearrange(share, "b -> b 1 1 1"))


EXERCISE = Exercise(
    name="mix",
    lesson="0b",
    place=5,
    title="Mix pictures and noise",
    question=(
        "Write `mix(x0, noise, share)`. Each sample has its own share. The result is "
        "share * x0 + (1 - share) * noise."
    ),
    solution=mix,
    stages=(
        Stage(
            "three samples, each with its own share",
            1,
            lambda g: [*normal(g, 2, 3, 2, 4, 5), torch.rand(3, generator=g, dtype=torch.float64)],
        ),
    ),
    hints=(
        "share has one axis, x0 has four. torch lines up axes from the right, so the axis b of "
        "share would meet the axis w of x0.",
        'Give share three more axes of length 1: rearrange(share, "b -> b 1 1 1").',
        "With this share, the formula of the question is right as it stands.",
    ),
    mistakes={
        "You multiplied the noise by share. At share 1, the result should be x0.": (
            spread_first(lambda x0, noise, share: x0 + share * (noise - x0))
        ),
        "Axes are lined up from the right, so b meets w. Give share the shape b 1 1 1.": (
            lambda x0, noise, share: share * x0 + (1 - share) * noise
        ),
        "Axes are lined up from the right, so w meets b. Give share the shape b 1 1 1.": (
            lambda x0, noise, share: x0 * share + noise * (1 - share)
        ),
        "The noise must be multiplied by 1 - share.": (
            spread_first(lambda x0, noise, share: share * x0 + noise)
        ),
        "Both are multiplied by share. The noise must be multiplied by 1 - share.": (
            spread_first(lambda x0, noise, share: share * (x0 + noise))
        ),
        "Leave out the square roots. In this mixture, the shares themselves add up to 1.": (
            spread_first(
                lambda x0, noise, share: share.sqrt() * x0 + (1 - share).sqrt() * noise,
            )
        ),
        "Every sample got the share of the first sample.": (
            lambda x0, noise, share: share[0] * x0 + (1 - share[0]) * noise
        ),
        "The noise is subtracted. It should be added.": (
            spread_first(lambda x0, noise, share: share * x0 - (1 - share) * noise)
        ),
    },
    passing=(
        "An axis of length 1 stretches to the length of the other tensor. So each sample of a "
        "batch can have its own share."
    ),
    difficulty=1,
    minutes=5,
)
