"""Patches of the student's own size, read in an unusual order."""

from einops import rearrange, reduce

from minisd.exercises.exercise import Exercise, Stage, normal


def patch_means(x, *, lines=2, columns=3):
    """The mean of each patch of each channel.

    x: b c h w    returns: b n c, where n counts the patches of a picture
    """
    return reduce(x, "b c (h p) (w q) -> b (w h) c", "mean", p=lines, q=columns)


def pattern(text, how="mean"):
    return lambda x, *, lines=2, columns=3: reduce(x, text, how, p=lines, q=columns)


def channels_first(x, *, lines=2, columns=3):
    return rearrange(patch_means(x, lines=lines, columns=columns), "b n c -> b c n")


def mean_of_channels(x, *, lines=2, columns=3):
    return patch_means(x, lines=lines, columns=columns).mean(dim=-1)


def draw_constants(rng):
    lines, columns = rng.sample([2, 3, 4, 6], 2)
    return {"lines": lines, "columns": columns}


EXERCISE = Exercise(
    name="patch_means",
    lesson="0b",
    place=13,
    title="The colours of patches, down the columns",
    question=(
        "Cut each picture into patches. Your patches are {lines} pixels high and {columns} "
        "pixels wide. Write `patch_means(x)`. It returns the mean of each channel of each patch. "
        "x has the shape b c h w, and the result has the shape b n c, where n counts the patches "
        "of a picture. The patches go column by column: first all patches at the left border, "
        "from top to bottom, then the next column of patches. h is a multiple of {lines}, and w "
        "is a multiple of {columns}."
    ),
    solution=patch_means,
    stages=(
        Stage("one channel", 1, lambda g: [normal(g, 1, 1, 12, 12)]),
        Stage("two pictures of 3 channels", 1, lambda g: [normal(g, 2, 3, 12, 24)]),
    ),
    hints=(
        "The part *einops* of lesson 0b cuts a picture into patches. reduce takes their means.",
        'The left side is "b c (h p) (w q)". Then h and w count the patches.',
        'In "(w h)", the last letter moves fastest, so the list goes down first. c comes after it.',
    ),
    mistakes={
        "The patches go line by line. They should go down first.": (
            pattern("b c (h p) (w q) -> b (h w) c")
        ),
        "The patches have the wrong shape. Exchange their height and their width.": (
            pattern("b c (h q) (w p) -> b (w h) c")
        ),
        "The patches go line by line, and their height and width are exchanged.": (
            pattern("b c (h q) (w p) -> b (h w) c")
        ),
        "(p h) takes pixels from all over the picture. A patch has neighbouring pixels: (h p).": (
            pattern("b c (p h) (q w) -> b (w h) c")
        ),
        "This is the sum of each patch, not the mean.": (
            pattern("b c (h p) (w q) -> b (w h) c", "sum")
        ),
        "This is the largest number of each patch, not the mean.": (
            pattern("b c (h p) (w q) -> b (w h) c", "max")
        ),
        "The channels must be the last axis.": channels_first,
        "Keep the channels: each has its own mean.": mean_of_channels,
        "Put the two axes that count the patches together into one axis.": pattern(
            "b c (h p) (w q) -> b h w c"
        ),
        "Make one axis of the two that count the patches, and put the channels last.": (
            pattern("b c (h p) (w q) -> b c h w")
        ),
    },
    passing="rearrange and reduce can cut, sort and average in one line.",
    difficulty=2,
    minutes=8,
    needs=("tokens",),
    given="from einops import reduce",
    constants=draw_constants,
    in_lesson=True,
)
