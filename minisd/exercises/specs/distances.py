"""The primer's puzzle 6: broadcasting, every x minus every y."""

from einops import rearrange

from minisd.exercises.exercise import Exercise, Stage, normal


def distances(x, y):
    """Each number of x minus each number of y.

    x: n    y: m    returns: n m
    """
    return rearrange(x, "n -> n 1") - y


EXERCISE = Exercise(
    name="distances",
    lesson="0b",
    place=6,
    title="Every x minus every y",
    question=(
        "Write `distances(x, y)`. Row i of the result holds x[i] minus each number of y. Keep the "
        "signs."
    ),
    solution=distances,
    stages=(Stage("4 and 3 numbers", 1, lambda g: [normal(g, 4), normal(g, 3)]),),
    hints=(
        "You need no loop. Which shapes give n m when they are subtracted?",
        "The shapes n 1 and m give n m: the axis of length 1 stretches to m, and the axis that y "
        "lacks stretches to n.",
        'rearrange(x, "n -> n 1") has one number per row. Subtract y from it.',
    ),
    mistakes={
        "This is y minus x. Subtract y from x.": lambda x, y: y - rearrange(x, "n -> n 1"),
        "The rows must belong to x: give x the shape n 1.": (
            lambda x, y: x - rearrange(y, "m -> m 1")
        ),
        "This is y minus x, and the rows belong to y. Give x the shape n 1, and subtract y.": (
            lambda x, y: rearrange(y, "m -> m 1") - x
        ),
        "x and y differ in length. Give x a second axis of length 1.": lambda x, y: x - y,
        "Keep the signs: leave out the absolute value.": (
            lambda x, y: (rearrange(x, "n -> n 1") - y).abs()
        ),
        "These are squares. Leave out the square.": (
            lambda x, y: (rearrange(x, "n -> n 1") - y) ** 2
        ),
        "This is the sum. Subtract y.": lambda x, y: rearrange(x, "n -> n 1") + y,
    },
    passing=(
        "A tensor of shape n 1 minus a tensor of shape m has the shape n m, because both stretch."
    ),
    difficulty=1,
    minutes=4,
)
