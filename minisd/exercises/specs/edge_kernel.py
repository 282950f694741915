"""The primer's puzzle 8: a kernel, written by hand."""

import torch

from minisd.exercises.exercise import Exercise, Stage


def edge_kernel():
    """The kernel that computes each pixel minus its left neighbour.

    returns: 3 3
    """
    return torch.tensor([[0.0, 0, 0], [-1, 1, 0], [0, 0, 0]])


def table(*rows):
    """A function without arguments that returns this kernel."""
    return lambda: torch.tensor(rows, dtype=torch.float32)


EMPTY = (0, 0, 0)

EXERCISE = Exercise(
    name="edge_kernel",
    lesson="0b",
    place=8,
    title="A kernel that finds edges",
    question=(
        "Write `edge_kernel()`. It has no arguments. Return the 3 x 3 kernel of a convolution that "
        "computes each pixel minus its left neighbour."
    ),
    solution=edge_kernel,
    stages=(Stage("nine weights", 1, lambda g: []),),
    hints=(
        "The middle of the kernel lies on the pixel itself. Two weights are not 0.",
        "The pixel is added once, so the middle is 1. The neighbour is subtracted.",
        "The left neighbour is in the middle row, in the first column. Its weight is -1.",
    ),
    mistakes={
        "This takes the right neighbour: the kernel lies on the picture as you write it.": (
            table(EMPTY, (0, 1, -1), EMPTY)
        ),
        "This takes the upper neighbour.": table((0, -1, 0), (0, 1, 0), EMPTY),
        "This takes the lower neighbour.": table(EMPTY, (0, 1, 0), (0, -1, 0)),
        "This is the left neighbour minus the pixel.": table(EMPTY, (1, -1, 0), EMPTY),
        "This is the right neighbour minus the pixel.": table(EMPTY, (0, -1, 1), EMPTY),
        "This is the right neighbour minus the left one. The middle must be 1.": (
            table(EMPTY, (-1, 0, 1), EMPTY)
        ),
        "This is the left neighbour minus the right one. The middle must be 1.": (
            table(EMPTY, (1, 0, -1), EMPTY)
        ),
        "All three rows have weights. Only the middle row should have some.": (
            table((-1, 1, 0), (-1, 1, 0), (-1, 1, 0))
        ),
        "The neighbour is added. Subtract it.": table(EMPTY, (1, 1, 0), EMPTY),
        "Return the table of 3 x 3 weights only. The axes of the channels come later.": (
            lambda: edge_kernel()[None, None]
        ),
        "This is a list. Make a tensor of it: torch.tensor(...).": lambda: edge_kernel().tolist(),
        "The kernel needs three rows: the first and the last are 0.": lambda: edge_kernel()[1],
    },
    passing="In networks, a convolution does not flip the kernel. In mathematics it does.",
    difficulty=1,
    minutes=4,
)
