"""Attention that stays inside strips of the picture. With student's constants."""

import torch

from minisd.exercises.exercise import Exercise, Stage, normal


def cut_attention(weights, width, *, strips=2):
    """Attention weights without those that lead from one strip into another.

    weights: b heads n n. The n places are those of a picture, row by row. Each row sums to 1
    width: how many places are in a row of the picture    returns: b heads n n
    """
    column = torch.arange(weights.shape[-1]) % width
    strip = column * strips // width
    kept = weights * (strip[:, None] == strip[None, :])
    return kept / kept.sum(dim=-1, keepdim=True)


def keep_strips(weights, strip):
    kept = weights * (strip[:, None] == strip[None, :])
    return kept / kept.sum(dim=-1, keepdim=True)


def not_one(weights, width, *, strips=2):
    return weights * (cut_attention(weights, width, strips=strips) > 0)


def wrong_axis(weights, width, *, strips=2):
    kept = not_one(weights, width, strips=strips)
    return kept / kept.sum(dim=-2, keepdim=True)


def bands(weights, width, *, strips=2):
    n = weights.shape[-1]
    return keep_strips(weights, torch.arange(n) * strips // n)


def other_strips(weights, width, *, strips=2):
    kept = weights - not_one(weights, width, strips=strips)
    return kept / kept.sum(dim=-1, keepdim=True)


def alternating(weights, width, *, strips=2):
    return keep_strips(weights, torch.arange(weights.shape[-1]) % width % strips)


def halves(weights, width, *, strips=2):
    return cut_attention(weights, width, strips=1 if strips == 2 else 2)


def softmax_again(weights, width, *, strips=2):
    kept = not_one(weights, width, strips=strips)
    return kept.masked_fill(kept == 0, float("-inf")).softmax(dim=-1)


def uniform(weights, width, *, strips=2):
    return cut_attention(torch.ones_like(weights), width, strips=strips)


def draw_inputs(b, heads, height, width):
    return lambda g: [normal(g, b, heads, height * width, height * width).softmax(-1), width]


EXERCISE = Exercise(
    name="cut_attention",
    lesson="08b",
    place=2,
    title="Cut the attention into strips",
    question=(
        "Cut the picture into {strips} vertical strips of equal width. Strip 0 holds the columns "
        "at the left edge. Write `cut_attention(weights, width)`: each weight between two places "
        "of different strips becomes 0. Then divide each row by its sum, so that it sums to 1 "
        "again. The width is a multiple of {strips}."
    ),
    solution=cut_attention,
    stages=(
        Stage("one row of places", 1, draw_inputs(1, 1, 1, 12)),
        Stage("three rows, two heads", 2, draw_inputs(2, 2, 3, 12)),
    ),
    hints=(
        "Place number i of the row-by-row order is in column i % width.",
        "Compute the strip of every place first, as a tensor with n numbers. strip[:, None] == "
        "strip[None, :] is n n: true where both places are in the same strip.",
        "A strip is width divided by your number of strips wide. Column c is in the strip c // "
        "that width. Multiply the weights by the n n table, then divide by "
        "kept.sum(dim=-1, keepdim=True).",
    ),
    mistakes={
        "The rows do not sum to 1 any more. Divide each row by its sum.": not_one,
        "The columns sum to 1. Divide by the sum over the last axis.": wrong_axis,
        "You cut the picture into horizontal bands. The strips should be vertical.": bands,
        "You kept the weights that should become 0.": other_strips,
        "Neighbouring columns are in different strips. A strip is one block of columns.": (
            alternating
        ),
        "The number of strips is wrong. The question names yours.": halves,
        "The weights went through softmax again. They are probabilities already.": softmax_again,
        "All weights inside a strip are equal. Keep their proportions.": uniform,
    },
    passing="With such weights, a place reads only its own strip of the picture.",
    difficulty=2,
    minutes=15,
    constants=lambda rng: {"strips": rng.choice([2, 3, 4, 6])},
    in_lesson=True,
)
