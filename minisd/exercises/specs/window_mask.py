"""Another mask, with the student's own window."""

import torch

from minisd.exercises.check import draw_cat
from minisd.exercises.exercise import Exercise, Stage, normal


def window_mask(x, *, window=3, sinks=2):
    """A causal mask with a short memory: 0 where a token may look, else minus infinity.

    x: b n c    returns: n n. Row i says at which tokens token i may look
    """
    n = x.shape[1]
    mask = torch.full((n, n), float("-inf"), dtype=x.dtype, device=x.device)
    for i in range(n):
        for j in range(i + 1):
            if i - j < window or j < sinks:
                mask[i, j] = 0
    return mask


def mask_of(x, rule):
    n = x.shape[1]
    i, j = torch.arange(n)[:, None], torch.arange(n)[None, :]
    return torch.zeros(n, n).masked_fill(~rule(i, j), float("-inf"))


def one_more(x, *, window=3, sinks=2):
    return mask_of(x, lambda i, j: (j <= i) & ((i - j <= window) | (j < sinks)))


def one_less(x, *, window=3, sinks=2):
    return mask_of(x, lambda i, j: (j <= i) & ((i - j < window - 1) | (j < sinks)))


def no_sinks(x, *, window=3, sinks=2):
    return mask_of(x, lambda i, j: (j <= i) & (i - j < window))


def one_sink_more(x, *, window=3, sinks=2):
    return mask_of(x, lambda i, j: (j <= i) & ((i - j < window) | (j <= sinks)))


def later_sinks(x, *, window=3, sinks=2):
    return mask_of(x, lambda i, j: ((j <= i) & (i - j < window)) | (j < sinks))


def both_sides(x, *, window=3, sinks=2):
    return mask_of(x, lambda i, j: ((i - j).abs() < window) | ((j < sinks) & (j <= i)))


def only_later(x, *, window=3, sinks=2):
    return mask_of(x, lambda i, j: ((i <= j) & (j - i < window)) | (j < sinks))


def plain_causal(x, *, window=3, sinks=2):
    return mask_of(x, lambda i, j: j <= i)


def blocks(x, *, window=3, sinks=2):
    return mask_of(x, lambda i, j: (j <= i) & ((i // window == j // window) | (j < sinks)))


def inside_out(x, *, window=3, sinks=2):
    right = window_mask(x, window=window, sinks=sinks)
    return torch.where(right == 0, float("-inf"), 0)


def ones(x, *, window=3, sinks=2):
    return (window_mask(x, window=window, sinks=sinks) == 0).double()


EXERCISE = Exercise(
    name="window_mask",
    lesson="06",
    place=8,
    title="A text transformer with a short memory",
    question=(
        "Long texts are often read with a window: a token sees only the last few tokens before "
        "it, and the first tokens of the text. These first tokens are called attention sinks. "
        "Write `window_mask(x)` for your own window. It has {window} tokens: the token itself, "
        "and the tokens just before it. A token also sees the first {sinks} tokens of the text, "
        "but never a later token. The mask is 0 where a token may look, and minus infinity "
        "elsewhere."
    ),
    solution=window_mask,
    stages=(
        Stage("two tokens", 1, lambda g: [normal(g, 1, 2, 3)]),
        Stage("eleven tokens", 2, lambda g: [normal(g, 2, 11, 5)]),
    ),
    hints=(
        "Write the rule for one pair first: may token i look at token j?",
        "i - j is how far token j lies behind token i. The token itself has the distance 0.",
        "Token i may look at token j if j <= i, and if i - j is less than the window or j is less "
        "than the number of sinks. Start with a square of minus infinity, and set these to 0.",
    ),
    mistakes={
        "Your window is one token too long. It counts the token itself.": one_more,
        "Your window is one token too short. It counts the token itself once.": one_less,
        "The first tokens of the row are hidden. Every later token should see them.": no_sinks,
        "One token too many is visible at the beginning of the row. Count from 0.": one_sink_more,
        "A token must not see later tokens, even the first ones: token 0 does not see token 1.": (
            later_sinks
        ),
        "Your window reaches to later tokens, too. A token sees only what is before it.": (
            both_sides
        ),
        "Your window lies after the token. It should lie before it.": only_later,
        "This is the causal mask. Tokens outside the window should be hidden.": plain_causal,
        "You split the row into blocks. The window should move with the token.": blocks,
        "0 and minus infinity are swapped. 0 means that a token may look.": inside_out,
        "Use 0 and minus infinity, not 1 and 0. The mask is added to the scores.": ones,
    },
    passing="The mini never learnt to read with a window. The picture shows what it makes of it.",
    difficulty=2,
    minutes=15,
    needs=("causal_mask",),
    constants=lambda rng: {"window": rng.choice([3, 4, 5]), "sinks": rng.choice([2, 3])},
    in_picture={"minisd.clip.causal_mask": lambda answer: answer},
    draw=draw_cat,
    in_lesson=True,
)
