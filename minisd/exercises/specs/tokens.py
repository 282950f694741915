"""The primer's puzzle 3: a picture becomes a list of tokens."""

from einops import rearrange

from minisd.exercises.exercise import Exercise, Stage, normal


def tokens(x):
    """Turn a picture into tokens: the channels of each place.

    x: b c h w    returns: b (h w) c
    """
    return rearrange(x, "b c h w -> b (h w) c")


EXERCISE = Exercise(
    name="tokens",
    lesson="0b",
    place=3,
    title="A picture as a list of tokens",
    question=(
        "Write `tokens(x)`. Turn each picture into a list of tokens. A token holds the c channels "
        "of one place. The places come in reading order: the top line from left to right, then the "
        "next line."
    ),
    solution=tokens,
    stages=(Stage("two pictures", 1, lambda g: [normal(g, 2, 3, 4, 5)]),),
    hints=(
        "The result has the shape b n c, where n is h times w.",
        "Use rearrange. Brackets put two axes together: (h w).",
        'The left side is "b c h w". On the right, (h w) comes before c.',
    ),
    mistakes={
        "You went down the columns: (h w) goes line by line, (w h) does not.": (
            lambda x: rearrange(x, "b c h w -> b (w h) c")
        ),
        "reshape keeps the order of the numbers, but here an axis must move.": (
            lambda x: x.reshape(x.shape[0], -1, x.shape[1])
        ),
        "The channels must be the last axis: one row for each place.": lambda x: x.flatten(2),
        "Put h and w together into one axis.": lambda x: rearrange(x, "b c h w -> b h w c"),
        "You put all samples into one list. Keep the axis b.": (
            lambda x: rearrange(x, "b c h w -> (b h w) c")
        ),
        "You put the channels into the list as well. Keep the axis c.": lambda x: x.flatten(1),
    },
    passing="Attention reads a picture in this form.",
    difficulty=1,
    minutes=4,
)
