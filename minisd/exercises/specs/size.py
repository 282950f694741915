"""The primer's puzzle 7: the size of a convolution's output."""

from minisd.exercises.exercise import Exercise, Stage


def size(h, k, stride, padding):
    """The height of a convolution's output, one int.

    h: the height of the input    k: the kernel size
    """
    return (h + 2 * padding - k) // stride + 1


EXERCISE = Exercise(
    name="size",
    lesson="0b",
    place=7,
    title="The size after a convolution",
    question=(
        "Write `size(h, k, stride, padding)`. A convolution reads an input of height h with a "
        "kernel of height k. `padding` lines are added above it, and as many below it. Return "
        "the height of the output: the number of places at which the kernel fits into the padded "
        "input. The kernel moves down by `stride` lines from one place to the next."
    ),
    solution=size,
    stages=(
        Stage("kernel 5, stride 1, padding 2", 1, lambda g: [6, 5, 1, 2]),
        Stage("kernel 5, stride 3, padding 4", 1, lambda g: [22, 5, 3, 4]),
    ),
    hints=(
        "The padded input has the height h + 2 * padding.",
        "The first place of the kernel is at the top. How far can it move from there?",
        "It can move h + 2 * padding - k lines. Divide by stride, round down, and add 1.",
    ),
    mistakes={
        "Padding is on both sides. Count it twice.": (
            lambda h, k, stride, padding: (h + padding - k) // stride + 1
        ),
        "Add 1: the first position counts too.": (
            lambda h, k, stride, padding: (h + 2 * padding - k) // stride
        ),
        "Round down: a place that does not fit completely does not count.": (
            lambda h, k, stride, padding: (h + 2 * padding - k) / stride + 1
        ),
        "Round down, not up: a place that does not fit completely does not count.": (
            lambda h, k, stride, padding: -(-(h + 2 * padding - k) // stride) + 1
        ),
        "Add 1 after the division, not before it.": (
            lambda h, k, stride, padding: (h + 2 * padding - k + 1) // stride
        ),
        "The kernel's size is not subtracted.": (
            lambda h, k, stride, padding: (h + 2 * padding) // stride
        ),
        "The padding is missing.": lambda h, k, stride, padding: (h - k) // stride + 1,
        "Divide by the stride.": lambda h, k, stride, padding: h + 2 * padding - k + 1,
        "Padding makes the input larger. Add it.": (
            lambda h, k, stride, padding: (h - 2 * padding - k) // stride + 1
        ),
    },
    passing="With kernel 3 and padding 1, stride 1 keeps the size and stride 2 halves it.",
    difficulty=1,
    minutes=5,
)
