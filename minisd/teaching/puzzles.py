"""The primer's twelve one-line puzzles, and one example. check() tells whether an answer is right.

    check("tokens", lambda x: rearrange(x, "b c h w -> b (h w) c"))

The functions from row_mean() to noise_rate() are the solutions. The docstring of each is the
question. check() tries an answer on random tensors. All axes of a tensor have different lengths, so
a wrong axis changes the shape.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minisd.teaching.plot.canvas import say


def row_mean(x):
    """The mean of each row. x: n m    returns: n"""
    return x.mean(dim=1)


def red_channel(image):
    """The red channel of every picture. image: b 3 h w    returns: b h w"""
    return image[:, 0]


def count_numbers(x):
    """How many numbers one sample of x has. x: b c h w    returns: one int"""
    return x[0].numel()


def tokens(x):
    """Turn a picture into tokens: the channels of each place. x: b c h w    returns: b (h w) c"""
    return rearrange(x, "b c h w -> b (h w) c")


def heads(x):
    """Cut the channels of each token into 4 heads. x: b n c    returns: b 4 n d, with c = 4 * d"""
    return rearrange(x, "b n (heads d) -> b heads n d", heads=4)


def mix(x0, noise, share):
    """Compute share * x0 + (1 - share) * noise. x0, noise: b c h w    share: b, one per sample"""
    return noise + rearrange(share, "b -> b 1 1 1") * (x0 - noise)


def distances(x, y):
    """Each number of x minus each number of y. x: n    y: m    returns: n m"""
    return rearrange(x, "n -> n 1") - y


def size(h, k, stride, padding):
    """The height of a convolution's output, one int.

    h: the height of the input
    k: the kernel size
    """
    return (h + 2 * padding - k) // stride + 1


def edge_kernel():
    """The kernel that computes each pixel minus its left neighbour. No arguments    returns: 3 3"""
    return torch.tensor([[0.0, 0, 0], [-1, 1, 0], [0, 0, 0]])


def layer_norm(x):
    """Scale each token to mean 0 and variance 1. Add 1e-5 to the variance first. x: b n c"""
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()


def group_norm(x):
    """Scale each of 2 groups of channels to mean 0 and variance 1, over all places. x: b c h w"""
    grouped = rearrange(x, "b (g c) h w -> b g (c h w)", g=2)
    return rearrange(layer_norm(grouped), "b g (c h w) -> b (g c) h w", h=x.shape[2], w=x.shape[3])


def softmax(scores):
    """The softmax of each row, also for very large scores. scores: n m"""
    shifted = (scores - scores.amax(dim=1, keepdim=True)).exp()
    return shifted / shifted.sum(dim=1, keepdim=True)


def noise_rate(signal_rate):
    """The r that gives signal_rate * x + r * noise the variance 1. x and noise have variance 1."""
    return (1 - signal_rate**2) ** 0.5


@dataclass(frozen=True)
class Puzzle:
    """A puzzle: its solution, its arguments, and what to say about an answer.

    solve: the solution, a function
    draw: a function that draws the tuple of arguments with a random generator
    right: the sentence to show after a right answer
    mistakes: a sentence that explains a common mistake -> a function that makes this mistake
    """

    solve: Callable
    draw: Callable[[torch.Generator], tuple]
    right: str
    mistakes: dict[str, Callable] = field(default_factory=dict)


def normal(*shape: int) -> Callable[[torch.Generator], tuple]:
    """Make a function for Puzzle.draw. It draws one random tensor of this shape, in float64."""
    return lambda generator: (torch.randn(shape, generator=generator, dtype=torch.float64),)


def two_and_share(generator: torch.Generator) -> tuple:
    """Draw the arguments of the puzzle "mix": x0, noise and share."""
    x0, noise = torch.randn(2, 3, 2, 4, 5, generator=generator, dtype=torch.float64)
    return x0, noise, torch.rand(3, generator=generator, dtype=torch.float64)


PUZZLES = [
    Puzzle(
        row_mean,
        normal(3, 4),
        "The mean over dim 1 removes dim 1.",
        {"This is the sum: divide it by the number of columns.": lambda x: x.sum(dim=1)},
    ),
    Puzzle(
        red_channel,
        normal(2, 3, 4, 5),
        "An index removes its axis. `image[:, 0:1]` would keep this axis, with length 1.",
        {"You kept the channel axis: index it with 0, not with 0:1.": lambda i: i[:, 0:1]},
    ),
    Puzzle(
        count_numbers,
        normal(2, 3, 4, 5),
        "The answer is c times h times w. A latent has 48 times fewer numbers than its picture.",
        {"This counts the numbers of the whole batch: take one sample.": lambda x: x.numel()},
    ),
    Puzzle(
        tokens,
        normal(2, 3, 4, 5),
        "Attention reads a picture in this form.",
        {
            "You went down the columns: (h w) goes line by line, (w h) does not.": lambda x: (
                rearrange(x, "b c h w -> b (w h) c")
            ),
            "reshape keeps the order of the numbers, but here an axis must move.": lambda x: (
                x.reshape(x.shape[0], -1, x.shape[1])
            ),
        },
    ),
    Puzzle(
        heads,
        normal(2, 3, 20),
        "(heads d) means that the first d channels are head 0.",
        {
            "(d heads) gives every fourth channel to head 0. It should get the first d channels.": (
                lambda x: rearrange(x, "b n (d heads) -> b heads n d", heads=4)
            ),
        },
    ),
    Puzzle(
        mix,
        two_and_share,
        "An axis of length 1 stretches. So each sample of a batch can have its own share of noise.",
        {
            "You multiplied the noise by share. At share 1, the result should be x0.": (
                lambda x, n, s: x + rearrange(s, "b -> b 1 1 1") * (n - x)
            ),
        },
    ),
    Puzzle(
        distances,
        lambda g: (torch.randn(4, generator=g), torch.randn(3, generator=g)),
        "A tensor n 1 minus a tensor m is a tensor n m, because both stretch.",
        {"This is y minus x.": lambda x, y: y - rearrange(x, "n -> n 1")},
    ),
    Puzzle(
        size,
        lambda g: (20, 5, 2, 4),
        "With kernel 3 and padding 1, stride 1 keeps the size and stride 2 halves it.",
        {
            "Padding is on both sides. Count it twice.": lambda h, k, s, p: (h + p - k) // s + 1,
            "Add 1: the first position counts too.": lambda h, k, s, p: (h + 2 * p - k) // s,
        },
    ),
    Puzzle(
        edge_kernel,
        lambda g: (),
        "In networks, a convolution does not flip the kernel. In mathematics it does.",
        {
            "This takes the right neighbour: the kernel lies on the picture as you write it.": (
                lambda: torch.tensor([[0.0, 0, 0], [0, 1, -1], [0, 0, 0]])
            ),
            "This takes the upper neighbour.": (
                lambda: torch.tensor([[0.0, -1, 0], [0, 1, 0], [0, 0, 0]])
            ),
        },
    ),
    Puzzle(
        layer_norm,
        normal(2, 4, 5),
        "The text transformer does this to each token separately.",
        {
            "torch's var divides by n - 1, but a norm divides by n: set correction=0.": lambda x: (
                (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt()
            ),
            "1e-5 belongs under the square root.": lambda x: (
                (x - x.mean(-1, keepdim=True)) / (x.std(-1, correction=0, keepdim=True) + 1e-5)
            ),
        },
    ),
    Puzzle(
        group_norm,
        normal(2, 6, 4, 5),
        "The U-Net does this before every convolution. Samples do not affect each other.",
        {
            "This scales each channel alone (instance norm). Scale 3 channels together.": (
                lambda x: F.group_norm(x, x.shape[1])
            ),
            "This puts all channels into one group. Use 2 groups.": lambda x: F.group_norm(x, 1),
        },
    ),
    Puzzle(
        softmax,
        lambda g: (500 * torch.randn(4, 5, generator=g, dtype=torch.float64),),
        "If you subtract the largest score, the softmax stays the same, and exp() stays finite.",
        {
            "exp() of a large score is infinite. First subtract the largest score.": lambda s: (
                s.exp() / s.exp().sum(dim=1, keepdim=True)
            ),
            "Here, each column adds up to 1. Each row should add up to 1.": lambda s: s.softmax(0),
        },
    ),
    Puzzle(
        noise_rate,
        lambda g: (0.3,),
        "Variances add up, standard deviations do not. In the schedule, r is the noise rate.",
        {
            "Make the variances add up to 1, not the standard deviations.": lambda a: 1 - a,
            "This is the variance of r * noise. Take the square root.": lambda a: 1 - a**2,
        },
    ),
]
BY_NAME = {puzzle.solve.__name__: puzzle for puzzle in PUZZLES}


def check(name: str, answer: Callable) -> None:
    """Try an answer to a puzzle, and show whether it is right. answer: a function."""
    say(check_verdict(name, answer))


def check_verdict(name: str, answer: Callable) -> str:
    """The text that check() shows. Raises ValueError if no puzzle has this name."""
    if name not in BY_NAME:
        raise ValueError(f"there is no puzzle {name!r}. Choose one of {', '.join(BY_NAME)}.")
    puzzle = BY_NAME[name]
    label = f"**{list(BY_NAME).index(name)} · {name}**"
    arguments = puzzle.draw(torch.Generator().manual_seed(0))
    try:
        got = answer(*arguments)
    except Exception as error:  # a student's line may raise anything
        return f"{label} stopped with {type(error).__name__}: {str(error).strip()}"
    if got is ...:
        return f"{label} waits for your line in place of the three dots."
    wanted = puzzle.solve(*arguments)
    wrong = find_difference(got, wanted)
    if wrong is None:
        return f"{label} is right. {puzzle.right}"
    for sentence, mistake in puzzle.mistakes.items():
        if find_difference(got, mistake(*arguments)) is None:
            wrong = f"{wrong} {sentence}"
            break
    return f"{label} is not right yet. {wrong}"


def find_difference(got: object, wanted: Tensor | float) -> str | None:
    """A sentence about the first difference in type, shape or number. None: no difference."""
    try:
        found, wanted = torch.as_tensor(got).double(), torch.as_tensor(wanted).double()
    except (TypeError, ValueError, RuntimeError):
        return f"Expected numbers, got {type(got).__name__}."
    if found.shape != wanted.shape:
        return f"The shape is {shape_text(found.shape)}, expected {shape_text(wanted.shape)}."
    close = torch.isclose(found, wanted, rtol=1e-6, atol=1e-8, equal_nan=True)
    if close.all():
        return None
    place = tuple((~close).nonzero()[0].tolist())
    where = f"The number at {list(place)}" if place else "The number"
    return f"{where} is {found[place]:.4f}, expected {wanted[place]:.4f}."


def shape_text(shape: torch.Size) -> str:
    """A shape as text, as in docstrings: the lengths of the axes with spaces between them."""
    return " ".join(map(str, shape)) or "that of one number"


def solution(name: str) -> None:
    """Show the code that solves the puzzle."""
    say(f"```python\n{inspect.getsource(BY_NAME[name].solve).rstrip()}\n```")
