"""The primer's puzzle 2: how many numbers a sample has."""

from minisd.exercises.exercise import Exercise, Stage, normal


def count_numbers(x):
    """How many numbers one sample of x has.

    x: b c h w    returns: one int
    """
    return x[0].numel()


EXERCISE = Exercise(
    name="count_numbers",
    lesson="0b",
    place=2,
    title="How many numbers a sample has",
    question=(
        "Write `count_numbers(x)`. x is a batch of pictures or latents. Return how many numbers "
        "one sample has: one int."
    ),
    solution=count_numbers,
    stages=(Stage("two samples", 1, lambda g: [normal(g, 2, 3, 4, 5)]),),
    hints=(
        "One sample has the shape c h w.",
        "x.shape is a tuple: b, c, h, w. x.numel() counts all numbers of a tensor.",
        "x[0] is the first sample. Count its numbers, or multiply c, h and w.",
    ),
    mistakes={
        "This counts the numbers of the whole batch: take one sample.": lambda x: x.numel(),
        "This is the number of samples. Count the numbers of one sample.": lambda x: x.shape[0],
        "This is the number of channels. Multiply it by the height and the width.": (
            lambda x: x.shape[1]
        ),
        "This is the shape of one sample. Multiply its three numbers.": lambda x: x[0].shape,
        "This counts the numbers of one channel. A sample has c channels.": (
            lambda x: x[0, 0].numel()
        ),
        "You added the lengths of the axes. Multiply them.": lambda x: sum(x.shape[1:]),
        "This is the number of axes. Count the numbers.": lambda x: x.ndim,
        "This is the shape of the whole batch. Take one sample, and multiply.": lambda x: x.shape,
    },
    passing=(
        "The answer is c times h times w. A latent has 48 times fewer numbers than its picture."
    ),
    difficulty=1,
    minutes=3,
)
