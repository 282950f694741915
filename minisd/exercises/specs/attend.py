"""Attention, eq. 1 of Vaswani et al. 2017."""

import torch
from einops import einsum

from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, normal


def attend(q, k, v, mask=None):
    """For each query, the weighted average of the values.

    q: b heads n d    k, v: b heads m d    returns: b heads n d
    mask: n m, numbers that are added to the scores. None: nothing is added
    """
    scores = einsum(q, k, "b heads n d, b heads m d -> b heads n m") / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores + mask
    weights = scores.softmax(dim=-1)
    return einsum(weights, v, "b heads n m, b heads m d -> b heads n d")


def without_scale(q, k, v, mask=None):
    return attend(q * q.shape[-1] ** 0.5, k, v, mask)


def softmax_over_queries(q, k, v, mask=None):
    scores = einsum(q, k, "b heads n d, b heads m d -> b heads n m") / q.shape[-1] ** 0.5
    scores = scores if mask is None else scores + mask
    return einsum(scores.softmax(dim=-2), v, "b heads n m, b heads m d -> b heads n d")


def scale_by_width(q, k, v, mask=None):
    return attend(q / q.shape[-1] ** 0.5, k, v, mask)


def no_mask(q, k, v, mask=None):
    return attend(q, k, v)


def mask_before_division(q, k, v, mask=None):
    return attend(q, k, v, None if mask is None else mask / q.shape[-1] ** 0.5)


def multiplied_mask(q, k, v, mask=None):
    scores = einsum(q, k, "b heads n d, b heads m d -> b heads n m") / q.shape[-1] ** 0.5
    weights = (scores if mask is None else scores * mask).softmax(dim=-1)
    return einsum(weights, v, "b heads n m, b heads m d -> b heads n d")


def mask_after_softmax(q, k, v, mask=None):
    scores = einsum(q, k, "b heads n d, b heads m d -> b heads n m") / q.shape[-1] ** 0.5
    weights = scores.softmax(dim=-1) if mask is None else scores.softmax(dim=-1) + mask
    return einsum(weights, v, "b heads n m, b heads m d -> b heads n d")


def only_infinities(q, k, v, mask=None):
    return attend(q, k, v, None if mask is None else mask.masked_fill(mask.isfinite(), 0))


def without_softmax(q, k, v, mask=None):
    scores = einsum(q, k, "b heads n d, b heads m d -> b heads n m") / q.shape[-1] ** 0.5
    scores = scores if mask is None else scores + mask
    return einsum(scores, v, "b heads n m, b heads m d -> b heads n d")


def keys_as_values(q, k, v, mask=None):
    return attend(q, k, k, mask)


def return_weights(q, k, v, mask=None):
    scores = einsum(q, k, "b heads n d, b heads m d -> b heads n m") / q.shape[-1] ** 0.5
    return (scores if mask is None else scores + mask).softmax(dim=-1)


def scale_by_heads(q, k, v, mask=None):
    return attend(q * (q.shape[-1] / q.shape[1]) ** 0.5, k, v, mask)


def triangle(n):
    return torch.full((n, n), float("-inf"), dtype=torch.float64).triu(1)


def with_tap(answer):
    """The answer as the core's function, which has one more argument."""
    return lambda q, k, v, tap, mask=None: answer(q, k, v, mask)


EXERCISE = Exercise(
    name="attend",
    lesson="07",
    place=3,
    title="Attention in four lines",
    question=(
        "Write `attend(q, k, v, mask=None)`. Compute the scores of all queries with all keys, "
        "and divide them by the square root of d, the length of the last axis of q. Add the mask "
        "if there is one (`if mask is not None`). Take the softmax over the keys, and use these "
        "weights to average the values."
    ),
    solution=attend,
    stages=(
        Stage(
            "one query, two keys", 1, lambda g: [normal(g, 1, 1, 1, 4), *normal(g, 2, 1, 1, 2, 4)]
        ),
        Stage(
            "a batch of 2 with 3 heads, 5 queries, 7 keys",
            2,
            lambda g: [normal(g, 2, 3, 5, 4), *normal(g, 2, 2, 3, 7, 4)],
        ),
        Stage("a mask", 1, lambda g: [*normal(g, 3, 2, 2, 6, 4), normal(g, 6, 6) + triangle(6)]),
    ),
    hints=(
        "Write the shape of each tensor next to its line: the scores are b heads n m.",
        "einsum(q, k, 'b heads n d, b heads m d -> b heads n m') gives the scores. The softmax "
        "goes over m, the last axis.",
        "scores / d ** 0.5, then + mask, then .softmax(dim=-1). Then einsum(weights, v, "
        "'b heads n m, b heads m d -> b heads n d').",
    ),
    mistakes={
        "The scores are not divided by the square root of d.": without_scale,
        "You divided by d, not by its square root.": scale_by_width,
        "You divided by the root of the number of heads. d is q.shape[-1].": scale_by_heads,
        "Name all axes of q: b heads n d. The result needs b and heads, too.": (
            lambda q, k, v, mask=None: einsum(q, k, "n d, m d -> n m")
        ),
        "k.T reverses all axes. Exchange only the last two, or use einsum.": (
            lambda q, k, v, mask=None: q @ k.T
        ),
        "This exchanges batch and heads. Exchange the last two axes of k, or use einsum.": (
            lambda q, k, v, mask=None: q @ k.transpose(0, 1)
        ),
        "Exchange the last two axes of k before the product, or use einsum.": (
            lambda q, k, v, mask=None: q @ k
        ),
        "A mask is neither true nor false. Write `if mask is not None`.": (
            lambda q, k, v, mask=None: attend(q, k, v, mask or None)
        ),
        "The softmax goes over the queries. It should go over the keys, the last axis.": (
            softmax_over_queries
        ),
        "The mask is not added to the scores.": no_mask,
        "The mask is divided by the square root of d, too. Add it after the division.": (
            mask_before_division
        ),
        "The mask is multiplied. It should be added, before the softmax.": multiplied_mask,
        "The mask is added after the softmax. Add it to the scores.": mask_after_softmax,
        "You used only where the mask is -inf. Add all of its numbers to the scores.": (
            only_infinities
        ),
        "The softmax is missing.": without_softmax,
        "You averaged the keys. The result is an average of the values.": keys_as_values,
        "These are the weights. Use them to average the values.": return_weights,
    },
    passing="Every attention of the text transformer, the U-Net and the VAE calls this function.",
    difficulty=2,
    minutes=15,
    replaces={"minisd.attention.attend": with_tap},
    draw=draw_cat,
    in_lesson=True,
)
