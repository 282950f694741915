"""From a depth map to the fifth channel of the latent."""

import torch
import torch.nn.functional as F

from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.exercises.specs._pictures import redraw_pair


def depth_channel(depth, size):
    """Depth maps as the U-Net reads them.

    depth: b 1 h w, large where something is near    size: [h', w'], the size of the latent
    returns: b 1 h' w', from -1 (far) to nearly 1 (near)
    """
    small = F.interpolate(depth, size, mode="bicubic", align_corners=False)
    values = small.flatten(1)
    low = values.min(dim=1).values[:, None, None, None]
    high = values.max(dim=1).values[:, None, None, None]
    share = (small - low) / (high - low + 0.001)
    return 2 * share - 1


def stretch(small, low, high, more=0.001):
    return 2 * (small - low) / (high - low + more) - 1


def shrink(depth, size, mode="bicubic"):
    return F.interpolate(depth, size, mode=mode)


def whole_batch(depth, size):
    small = shrink(depth, size)
    return stretch(small, small.min(), small.max())


def without_axes(depth, size):
    small = shrink(depth, size)
    values = small.flatten(1)
    return stretch(small, values.min(dim=1).values, values.max(dim=1).values)


def zero_to_one(depth, size):
    return (depth_channel(depth, size) + 1) / 2


def ends(x):
    return x.amin(dim=(1, 2, 3), keepdim=True), x.amax(dim=(1, 2, 3), keepdim=True)


def nothing_added(depth, size):
    small = shrink(depth, size)
    return stretch(small, *ends(small), more=0)


def bilinear(depth, size):
    small = shrink(depth, size, "bilinear")
    return stretch(small, *ends(small))


def nearest(depth, size):
    small = shrink(depth, size, "nearest")
    return stretch(small, *ends(small))


def mean_of_square(depth, size):
    small = shrink(depth, size, "area")
    return stretch(small, *ends(small))


def with_corners(depth, size):
    small = F.interpolate(depth, size, mode="bicubic", align_corners=True)
    return stretch(small, *ends(small))


def stretch_first(depth, size):
    return shrink(stretch(depth, *ends(depth)), size)


def near_is_small(depth, size):
    small = shrink(depth, size)
    low, high = ends(small)
    return 2 * (high - small) / (high - low + 0.001) - 1


def from_zero(depth, size):
    small = shrink(depth, size)
    return 2 * small / (ends(small)[1] + 0.001) - 1


def mean_and_spread(depth, size):
    small = shrink(depth, size)
    spread = small.std(dim=(1, 2, 3), keepdim=True)
    return (small - small.mean(dim=(1, 2, 3), keepdim=True)) / (spread + 0.001)


def inputs(shape, size):
    return lambda g: [3 + 2 * normal(g, *shape), list(size)]


EXERCISE = Exercise(
    name="depth_channel",
    lesson="13",
    place=1,
    title="The fifth channel",
    question=(
        "Write `depth_channel(depth, size)`. First bring the depth maps to the size of the "
        'latent with F.interpolate, mode="bicubic" and align_corners=False. Then stretch the '
        "values of each map: let low be its smallest and high its largest value. (x - low) / "
        "(high - low + 0.001) goes from 0 to nearly 1. The 0.001 prevents a division by 0 if all "
        "values of a map are equal. Finally, bring the result to the range from -1 to nearly 1. "
        "Each map of the batch has its own low and high."
    ),
    solution=depth_channel,
    stages=(
        Stage("the size stays", 1, inputs((1, 1, 2, 3), (2, 3))),
        Stage("a smaller map", 1, inputs((1, 1, 24, 40), (3, 5))),
        Stage("a batch of 3", 2, inputs((3, 1, 20, 12), (5, 3))),
        Stage(
            "a map of equal values", 1, lambda g: [torch.full((1, 1, 4, 6), 0.5).double(), [2, 3]]
        ),
    ),
    hints=(
        "Three lines are enough: shrink, stretch to 0 … 1, stretch to -1 … 1.",
        "small.amin(dim=(1, 2, 3), keepdim=True) is the smallest value of each map: b 1 1 1.",
        "2 * (small - low) / (high - low + 0.001) - 1, with low and high of the small map.",
    ),
    mistakes={
        "low and high are those of the whole batch. Each map has its own.": whole_batch,
        "low and high have the shape b, so they met the width. They need the shape b 1 1 1.": (
            without_axes
        ),
        "The values go from 0 to 1. They should go from -1 to 1.": zero_to_one,
        "The 0.001 in the denominator is missing.": nothing_added,
        "Shrink the map with bicubic interpolation, not bilinear.": bilinear,
        "Shrink the map with bicubic interpolation, not with the nearest pixel.": nearest,
        "Shrink the map with bicubic interpolation, not with the mean of each area.": (
            mean_of_square
        ),
        "align_corners should be False.": with_corners,
        "Shrink first. low and high are those of the small map.": stretch_first,
        "Near and far are swapped: near should be large.": near_is_small,
        "low is not subtracted.": from_zero,
        "Stretch between the smallest and the largest value, not by mean and spread.": (
            mean_and_spread
        ),
    },
    passing="So the U-Net does not need to know the unit of the depth, or where its zero is.",
    difficulty=2,
    minutes=12,
    in_picture={"minisd.tasks.depth2img.depth_channel": lambda answer: answer},
    draw=redraw_pair,
    in_lesson=True,
)
