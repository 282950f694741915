"""The primer's puzzle 10: group norm."""

import torch.nn.functional as F
from einops import rearrange

from minisd.exercises.exercise import Exercise, Stage, normal


def group_norm(x):
    """Scale each of 2 groups of channels to mean 0 and variance 1, over all places.

    x: b c h w    returns: b c h w
    """
    groups = rearrange(x, "b (g c) h w -> b g (c h w)", g=2)
    mean = groups.mean(dim=-1, keepdim=True)
    variance = groups.var(dim=-1, correction=0, keepdim=True)
    scaled = (groups - mean) / (variance + 1e-5).sqrt()
    return rearrange(scaled, "b g (c h w) -> b (g c) h w", h=x.shape[2], w=x.shape[3])


def with_spread(correction, inside, outside):
    """The group norm with another variance or another place of 1e-5."""

    def scale(x):
        groups = rearrange(x, "b (g c) h w -> b g (c h w)", g=2)
        spread = (groups.var(-1, correction=correction, keepdim=True) + inside).sqrt() + outside
        scaled = (groups - groups.mean(-1, keepdim=True)) / spread
        return rearrange(scaled, "b g (c h w) -> b (g c) h w", h=x.shape[2], w=x.shape[3])

    return scale


def take_every_second(x):
    moved = rearrange(x, "b (c g) h w -> b (g c) h w", g=2)
    return rearrange(group_norm(moved), "b (g c) h w -> b (c g) h w", g=2)


def over_the_batch(x):
    together = rearrange(x, "b (g c) h w -> 1 (g b c) h w", g=2)
    return rearrange(group_norm(together), "1 (g b c) h w -> b (g c) h w", g=2, b=len(x))


def each_place(x):
    places = rearrange(x, "b (g c) h w -> (b h w) g c", g=2)
    scaled = F.layer_norm(places, places.shape[2:])
    return rearrange(scaled, "(b h w) g c -> b (g c) h w", h=x.shape[2], w=x.shape[3])


EXERCISE = Exercise(
    name="group_norm",
    lesson="0b",
    place=10,
    title="Group norm",
    question=(
        "Write `group_norm(x)`. The first half of the channels is one group, the second half is "
        "the other. Give each group of each sample mean 0 and variance 1, over its channels and "
        "all their places. As in the layer norm, add 1e-5 to the variance, and use no trained "
        "numbers. Do not call `F.group_norm`."
    ),
    solution=group_norm,
    stages=(
        Stage("one sample of 2 channels", 1, lambda g: [normal(g, 1, 2, 3, 4) + 1]),
        Stage("two samples of 6 channels", 1, lambda g: [normal(g, 2, 6, 4, 5) / 10 + 1]),
    ),
    hints=(
        "Bring all numbers of a group into one axis. Then the rest is a layer norm.",
        'rearrange(x, "b (g c) h w -> b g (c h w)", g=2) has one row for each group.',
        "After the norm of each row, rearrange back. For this, tell einops h and w: "
        "h=x.shape[2], w=x.shape[3].",
    ),
    mistakes={
        "This scales each channel alone (instance norm). Scale the channels of a group together.": (
            lambda x: F.group_norm(x, x.shape[1])
        ),
        "This puts all channels into one group. Use 2 groups.": lambda x: F.group_norm(x, 1),
        "(c g) puts every second channel into a group. A group has neighbouring channels.": (
            take_every_second
        ),
        "The samples of the batch affect each other. Each sample has its own mean.": over_the_batch,
        "Mean and variance go over the channels of each place. They should go over all places.": (
            each_place
        ),
        "torch's var divides by n - 1, but a norm divides by n: set correction=0.": (
            with_spread(1, 1e-5, 0)
        ),
        "1e-5 belongs under the square root.": with_spread(0, 0, 1e-5),
        "1e-5 is not added to the variance.": with_spread(0, 0, 0),
        "torch's std divides by n - 1, and 1e-5 is missing.": with_spread(1, 0, 0),
        "The result still has the shape of the groups. Rearrange it back to b c h w.": (
            lambda x: rearrange(group_norm(x), "b (g c) h w -> b g (c h w)", g=2)
        ),
    },
    passing="Each ResBlock of the U-Net does this twice. Samples do not affect each other.",
    difficulty=2,
    minutes=8,
    needs=("layer_norm",),
)
