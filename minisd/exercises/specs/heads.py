"""The primer's puzzle 4: channels are cut into heads."""

from einops import rearrange

from minisd.exercises.exercise import Exercise, Stage, normal


def heads(x):
    """Cut the channels of each token into 4 heads.

    x: b n c    returns: b 4 n d, with c = 4 * d
    """
    return rearrange(x, "b n (heads d) -> b heads n d", heads=4)


EXERCISE = Exercise(
    name="heads",
    lesson="0b",
    place=4,
    title="Cut channels into heads",
    question=(
        "Write `heads(x)`. Cut the c channels of each token into 4 heads of d = c / 4 channels. "
        "The first d channels are head 0, the next d are head 1, and so on. The axis of the heads "
        "is the second axis of the result."
    ),
    solution=heads,
    stages=(Stage("3 tokens of 20 channels", 1, lambda g: [normal(g, 2, 3, 20)]),),
    hints=(
        "rearrange can take an axis apart: write the two parts in brackets on the left.",
        'The left side is "b n (heads d)". rearrange needs to know how many heads there are.',
        'The right side is "b heads n d". Add heads=4 after the text.',
    ),
    mistakes={
        "(d heads) gives every fourth channel to head 0. It should get the first d channels.": (
            lambda x: rearrange(x, "b n (d heads) -> b heads n d", heads=4)
        ),
        "reshape keeps the order of the numbers, but here an axis must move.": (
            lambda x: x.reshape(x.shape[0], 4, x.shape[1], -1)
        ),
        "The axis of the heads must move: it comes before the tokens.": (
            lambda x: rearrange(x, "b n (heads d) -> b n heads d", heads=4)
        ),
        "4 is the number of heads, not their width.": (
            lambda x: rearrange(x, "b n (heads d) -> b heads n d", d=4)
        ),
        "d must be the last axis: each head has its own list of tokens.": (
            lambda x: rearrange(x, "b n (heads d) -> b heads d n", heads=4)
        ),
        "rearrange must know how many heads there are: add heads=4 after the text.": (
            lambda x: rearrange(x, "b n (heads d) -> b heads n d")
        ),
        "Both sides must name the same axes. Write heads in both, and add heads=4.": (
            lambda x: rearrange(x, "b n (4 d) -> b 4 n d")
        ),
        "Keep the axis of the samples: the result has four axes.": (
            lambda x: rearrange(x, "b n (heads d) -> (b heads) n d", heads=4)
        ),
    },
    passing="(heads d) means that the first d channels are head 0.",
    difficulty=1,
    minutes=4,
)
