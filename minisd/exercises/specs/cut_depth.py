"""Another fifth channel: the depth between two quantiles, which are the student's own."""

import torch
import torch.nn.functional as F

from minisd.exercises.exercise import Exercise, Stage, normal
from minisd.exercises.specs._pictures import redraw_pair


def cut_depth(depth, *, far=0.05, near=0.95):
    """Depth maps between -1 and 1. The nearest values and the farthest values are cut.

    depth: b 1 h w, large where something is near    returns: b 1 h w
    """
    ends = torch.tensor([far, near], dtype=depth.dtype)
    low, high = depth.flatten(1).quantile(ends, dim=1)[:, :, None, None, None]
    share = (depth - low) / (high - low)
    return 2 * share.clamp(0, 1) - 1


def stretch_between(depth, low, high):
    return 2 * ((depth - low) / (high - low)).clamp(0, 1) - 1


def quantile_of_each(depth, share, interpolation="linear"):
    values = depth.flatten(1).quantile(share, dim=1, interpolation=interpolation)
    return values[:, None, None, None]


def whole_batch(depth, *, far=0.05, near=0.95):
    return stretch_between(depth, depth.quantile(far), depth.quantile(near))


def share_of_range(depth, *, far=0.05, near=0.95):
    low, high = depth.amin(dim=(1, 2, 3), keepdim=True), depth.amax(dim=(1, 2, 3), keepdim=True)
    return stretch_between(depth, low + far * (high - low), low + near * (high - low))


def no_cut(depth, *, far=0.05, near=0.95):
    low, high = quantile_of_each(depth, far), quantile_of_each(depth, near)
    return 2 * (depth - low) / (high - low) - 1


def zero_to_one(depth, *, far=0.05, near=0.95):
    return (cut_depth(depth, far=far, near=near) + 1) / 2


def near_is_small(depth, *, far=0.05, near=0.95):
    return -cut_depth(depth, far=far, near=near)


def whole_range(depth, *, far=0.05, near=0.95):
    low, high = depth.amin(dim=(1, 2, 3), keepdim=True), depth.amax(dim=(1, 2, 3), keepdim=True)
    kept = depth.clamp(quantile_of_each(depth, far), quantile_of_each(depth, near))
    return stretch_between(kept, low, high)


def only_far(depth, *, far=0.05, near=0.95):
    return cut_depth(depth, far=far, near=1.0)


def only_near(depth, *, far=0.05, near=0.95):
    return cut_depth(depth, far=0.0, near=near)


def each_row(depth, *, far=0.05, near=0.95):
    low = depth.quantile(far, dim=-1, keepdim=True)
    return stretch_between(depth, low, depth.quantile(near, dim=-1, keepdim=True))


def whole_places(depth, *, far=0.05, near=0.95):
    low = quantile_of_each(depth, far, "lower")
    return stretch_between(depth, low, quantile_of_each(depth, near, "lower"))


def cut_to_ends(depth, *, far=0.05, near=0.95):
    low, high = quantile_of_each(depth, far), quantile_of_each(depth, near)
    return (2 * (depth - low) / (high - low) - 1).clamp(0, 1)


def as_depth_channel(answer):
    """The answer after the map has been shrunk, instead of minisd's depth_channel()."""
    return lambda depth, size: answer(F.interpolate(depth, list(size), mode="bicubic"))


EXERCISE = Exercise(
    name="cut_depth",
    lesson="13",
    place=3,
    title="Depth between two quantiles",
    question=(
        "One very near place makes all others look equally far. So cut the depth: write "
        "`cut_depth(depth)`. For each map, low is its quantile {far}: a share of {far} of its "
        "values lies below low. high is its quantile {near}. If a quantile lies between two "
        "values, interpolate, as torch.quantile does. Values below low become low, and values "
        "above high become high. Then stretch the map so that low becomes -1 and high becomes 1."
    ),
    solution=cut_depth,
    stages=(
        Stage("a map of 3 x 4", 1, lambda g: [normal(g, 1, 1, 3, 4).exp()]),
        Stage("a batch of 3", 3, lambda g: [normal(g, 3, 1, 7, 5).exp()]),
    ),
    hints=(
        "Flatten each map to one axis first: depth.flatten(1) is b (h w).",
        "depth.flatten(1).quantile(q, dim=1) gives one number for each map. Give it the shape "
        "b 1 1 1.",
        "share = (depth - low) / (high - low), then 2 * share.clamp(0, 1) - 1.",
    ),
    mistakes={
        "The quantiles are those of the whole batch. Each map has its own.": whole_batch,
        "You took shares of the range. A quantile counts values: use torch.quantile.": (
            share_of_range
        ),
        "Values beyond the quantiles are not cut.": no_cut,
        "The values go from 0 to 1. They should go from -1 to 1.": zero_to_one,
        "Near and far are swapped: near should be large.": near_is_small,
        "After the cut, stretch between the quantiles, not between the old ends.": whole_range,
        "Only the far end is cut. Cut the near end, too.": only_far,
        "Only the near end is cut. Cut the far end, too.": only_near,
        "Each row has its own quantiles. Take all places of a map together.": each_row,
        "The quantiles are not interpolated between two values.": whole_places,
        "Cut the share to 0 … 1 before you stretch it to -1 … 1.": cut_to_ends,
    },
    passing="A single near place no longer flattens the rest of the map.",
    difficulty=2,
    minutes=15,
    needs=("depth_channel",),
    constants=lambda rng: {
        "far": rng.choice([0.1, 0.15, 0.2]),
        "near": rng.choice([0.7, 0.75, 0.8, 0.85]),
    },
    in_picture={"minisd.tasks.depth2img.depth_channel": as_depth_channel},
    draw=redraw_pair,
    in_lesson=True,
)
