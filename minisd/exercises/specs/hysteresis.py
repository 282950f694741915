"""The last step of Canny's method: weak edges that are connected to strong ones."""

import torch
import torch.nn.functional as F

from minisd.exercises.exercise import Exercise, Stage
from minisd.exercises.specs._pictures import trace_rabbit


def hysteresis(steepness, low, high):
    """The pixels that belong to edges.

    steepness: b 1 h w    low, high: two numbers, low < high
    returns: b 1 h w, 1 at an edge, else 0
    """
    weak = steepness > low
    edges = steepness > high
    while True:
        near = F.max_pool2d(edges.to(steepness), 3, stride=1, padding=1) > 0
        grown = near & weak
        if torch.equal(grown, edges):
            return edges.to(steepness)
        edges = grown


def grow(edges, allowed, window=(3, 3)):
    padding = [side // 2 for side in window]
    return (F.max_pool2d(edges.double(), window, stride=1, padding=padding) > 0) & allowed


def one_round(steepness, low, high):
    return grow(steepness > high, steepness > low).to(steepness)


def strong_only(steepness, low, high):
    return (steepness > high).to(steepness)


def all_weak(steepness, low, high):
    return (steepness > low).to(steepness)


def without_corners(steepness, low, high):
    weak, edges = steepness > low, steepness > high
    for _ in range(steepness.numel()):
        edges = grow(edges, weak, (1, 3)) | grow(edges, weak, (3, 1))
    return edges.to(steepness)


def beyond_weak(steepness, low, high):
    return grow(steepness > high, steepness > -1).to(steepness)


def between_only(steepness, low, high):
    edges = hysteresis(steepness, low, high)
    return edges * (steepness <= high)


def across_the_border(steepness, low, high):
    weak, edges = steepness > low, steepness > high
    for _ in range(steepness.shape[2] * steepness.shape[3]):
        for axis in (2, 3):
            edges = edges | edges.roll(1, axis) | edges.roll(-1, axis)
        edges = edges & weak
    return edges.to(steepness)


def keep_steepness(steepness, low, high):
    return steepness * hysteresis(steepness, low, high)


def inputs(*shape):
    return lambda g: [torch.rand(shape, generator=g, dtype=torch.float64), 0.55, 0.93]


def chain(g):
    """One row: a strong pixel, a chain of weak ones, a gap, and weak ones without a strong one."""
    row = [0.1, 0.95, 0.6, 0.7, 0.6, 0.65, 0.2, 0.7, 0.6, 0.1]
    noise = 0.02 * torch.rand(10, generator=g, dtype=torch.float64)
    return [(torch.tensor(row, dtype=torch.float64) + noise)[None, None, None], 0.5, 0.9]


EXERCISE = Exercise(
    name="hysteresis",
    lesson="14",
    place=1,
    title="Weak edges that touch strong ones",
    question=(
        "Canny's method keeps two kinds of pixels. Strong pixels are steeper than `high`, and "
        "they are edges. Weak pixels are steeper than `low`. A weak pixel is an edge if it "
        "touches an edge, at a side or at a corner. So it can be connected to a strong pixel "
        "through a long chain of weak pixels. Write `hysteresis(steepness, low, high)`, which "
        "returns 1 at each edge pixel and 0 elsewhere."
    ),
    solution=hysteresis,
    stages=(
        Stage("one row", 1, chain),
        Stage("9 x 14 pixels", 1, inputs(1, 1, 9, 14)),
        Stage("a batch of 2", 2, inputs(2, 1, 20, 15)),
    ),
    hints=(
        "Start with the strong pixels, and let the edges grow, round by round.",
        "In each round, F.max_pool2d(edges, 3, stride=1, padding=1) marks an edge and its eight "
        "neighbours.",
        "grown = (max_pool2d(edges) > 0) & weak. Repeat this until nothing changes any more "
        "(torch.equal).",
    ),
    mistakes={
        "Only the neighbours of strong pixels are added. Repeat until nothing changes.": one_round,
        "These are the strong pixels only.": strong_only,
        "These are all weak pixels, also those that are not connected to a strong one.": all_weak,
        "Look at the corners, too: a pixel has eight neighbours.": without_corners,
        "The edges grow into pixels that are not even weak.": beyond_weak,
        "The strong pixels themselves are missing.": between_only,
        "The left border touches the right border, because roll() wraps around.": (
            across_the_border
        ),
        "Return 1 at an edge, not its steepness.": keep_steepness,
    },
    passing=(
        "The lines are now closed, without the noise of the other weak pixels. This is the edge "
        "map that lesson 14 gives to a ControlNet."
    ),
    difficulty=3,
    minutes=20,
    in_picture={
        "minisd.tasks.canny.hysteresis": lambda answer: (
            lambda possible, sure: answer(possible.float() + sure.float(), 0.5, 1.5) > 0
        )
    },
    draw=trace_rabbit,
)
