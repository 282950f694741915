"""The mask that hides later tokens."""

import torch

from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, normal


def causal_mask(x):
    """The mask for a sequence: 0 where a token may look at another token, else minus infinity.

    x: b n c    returns: n n. Row i says at which tokens token i may look
    """
    n = x.shape[1]
    mask = torch.zeros(n, n, dtype=x.dtype, device=x.device)
    for i in range(n):
        for j in range(n):
            if j > i:
                mask[i, j] = float("-inf")
    return mask


def infinities(n):
    return torch.full((n, n), float("-inf"))


def hide_itself(x):
    return infinities(x.shape[1]).triu(0)


def hide_earlier(x):
    return infinities(x.shape[1]).tril(-1)


def off_by_one(x):
    return infinities(x.shape[1]).triu(2)


def ones(x):
    return torch.ones(x.shape[1], x.shape[1]).triu(1)


def ones_below(x):
    return torch.ones(x.shape[1], x.shape[1]).tril()


def not_a_number(x):
    return torch.ones(x.shape[1], x.shape[1]).triu(1) * float("-inf")


def plus_infinity(x):
    return -infinities(x.shape[1]).triu(1)


def width_for_length(x):
    return infinities(x.shape[2]).triu(1)


def batch_for_length(x):
    return infinities(x.shape[0]).triu(1)


def one_for_each_sample(x):
    return torch.stack([causal_mask(x)] * len(x))


def very_small(x):
    return torch.full((x.shape[1], x.shape[1]), -1e9).triu(1)


def minus_one(x):
    return -torch.ones(x.shape[1], x.shape[1]).triu(1)


EXERCISE = Exercise(
    name="causal_mask",
    lesson="06",
    place=2,
    title="The causal mask",
    question=(
        "A token may look only at itself and at earlier tokens. Write `causal_mask(x)`. Read n, "
        "the number of tokens, from the shape of x. Return a mask of shape n n, which is later "
        "added to the scores. Row i belongs to the token that looks, column j to the token that "
        "is looked at. Where j is later than i, the mask is minus infinity. Elsewhere it is 0. "
        "Give it the dtype and the device of x."
    ),
    solution=causal_mask,
    stages=(
        Stage("one token", 1, lambda g: [normal(g, 1, 1, 2)]),
        Stage("three tokens", 1, lambda g: [normal(g, 1, 3, 2)]),
        Stage("a batch of 2, 6 tokens", 1, lambda g: [normal(g, 2, 6, 5)]),
    ),
    hints=(
        "Draw the mask for three tokens on paper first. Its first row is 0, -inf, -inf.",
        "torch.full((n, n), float('-inf')) is a square of minus infinity. triu(1) sets the "
        "diagonal and everything below it to 0.",
        "torch.full((n, n), float('-inf'), dtype=x.dtype, device=x.device), then .triu(1).",
    ),
    mistakes={
        "A token should see itself: the diagonal is 0. Use triu(1), not triu(0).": hide_itself,
        "You hide the earlier tokens. Hide the later ones, above the diagonal.": hide_earlier,
        "A token still sees the next token. Hide everything above the diagonal.": off_by_one,
        "Use minus infinity, not 1. The mask is added to the scores.": ones,
        "This mask is for multiplying. We need one to add: 0 where a token may look, else -inf.": (
            ones_below
        ),
        "0 times infinity is not a number. Fill with -inf first, then use triu(1).": not_a_number,
        "The sign is wrong: exp(-inf) is 0, so hidden places need minus infinity.": plus_infinity,
        "x is b n c. The number of tokens is x.shape[1].": width_for_length,
        "The first axis of x is the batch. The number of tokens is x.shape[1].": batch_for_length,
        "All samples share one mask. Return n n, without a batch axis.": one_for_each_sample,
        "-1e9 is not minus infinity. Write float('-inf').": very_small,
        "-1 hides nothing: exp(-1) is still 0.37. Use minus infinity.": minus_one,
    },
    passing='In "a blue cat", "cat" reads "blue", but "blue" does not read "cat".',
    difficulty=1,
    minutes=10,
    replaces={"minisd.clip.causal_mask": lambda answer: answer},
    draw=draw_cat,
    in_lesson=True,
)
