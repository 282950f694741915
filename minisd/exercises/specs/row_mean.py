"""The primer's example: the mean of each row."""

from minisd.exercises.exercise import Exercise, Stage, normal


def row_mean(x):
    """The mean of each row.

    x: n m    returns: n
    """
    return x.mean(dim=1)


EXERCISE = Exercise(
    name="row_mean",
    lesson="0b",
    place=0,
    title="The mean of each row",
    question=(
        "Write `row_mean(x)`. x is a table with n rows of m numbers. Return the n means, one for "
        "each row."
    ),
    solution=row_mean,
    stages=(Stage("3 rows of 4 numbers", 1, lambda g: [normal(g, 3, 4)]),),
    hints=(
        "The result has one number for each row. So the axis of the columns must go.",
        "x.mean(dim=...) removes one axis. The axes are counted from 0.",
        "The rows are dim 0 and the columns are dim 1. The mean goes over dim 1.",
    ),
    mistakes={
        "This is the sum: divide it by the number of columns.": lambda x: x.sum(dim=1),
        "You kept the axis of the columns: leave out keepdim=True.": (
            lambda x: x.mean(dim=1, keepdim=True)
        ),
        "This is the mean of each column. The mean of a row goes over dim 1.": (
            lambda x: x.mean(dim=0)
        ),
        "This is one mean of the whole table. Each row has a mean of its own.": lambda x: x.mean(),
        "You divided by the number of rows. Divide by the number of columns.": (
            lambda x: x.sum(dim=1) / x.shape[0]
        ),
        "This is the median of each row, not the mean.": lambda x: x.median(dim=1).values,
    },
    passing="The mean over dim 1 removes dim 1.",
    difficulty=1,
    minutes=3,
)
