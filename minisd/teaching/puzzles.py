"""The primer's twelve one-line puzzles, which check themselves.

    check("tokens", lambda x: rearrange(x, "b c h w -> b (h w) c"))

Each function below is a solution, and its docstring the question. An answer is tried on numbers it
has not seen, of sizes that are all different, so that what fits is right.
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
    """The red channel alone. image: b 3 h w    returns: b h w"""
    return image[:, 0]


def count_numbers(x):
    """How many numbers one sample of x has. x: b c h w    returns: one int"""
    return x[0].numel()


def tokens(x):
    """One row of channels for each place, line by line. x: b c h w    returns: b (h w) c"""
    return rearrange(x, "b c h w -> b (h w) c")


def heads(x):
    """Each row of channels cut into 4 heads. x: b n c    returns: b heads n d, c = heads * d"""
    return rearrange(x, "b n (heads d) -> b heads n d", heads=4)


def mix(x0, noise, share):
    """share of x0 and the rest of noise, a share per sample. x0, noise: b c h w    share: b"""
    return noise + rearrange(share, "b -> b 1 1 1") * (x0 - noise)


def distances(x, y):
    """Every x minus every y. x: n    y: m    returns: n m"""
    return rearrange(x, "n -> n 1") - y


def size(h, k, stride, padding):
    """The height that a convolution leaves of h: kernel k, stride and padding given. One int"""
    return (h + 2 * padding - k) // stride + 1


def edge_kernel():
    """The kernel, 3 3, that gives each pixel minus its left neighbour. No arguments"""
    return torch.tensor([[0.0, 0, 0], [-1, 1, 0], [0, 0, 0]])


def layer_norm(x):
    """Each row with mean 0 and variance 1, 1e-5 added to the variance. x: b n c"""
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()


def group_norm(x):
    """Layer norm's formula over each of 2 groups of channels and all their places. x: b c h w"""
    grouped = rearrange(x, "b (g c) h w -> b g (c h w)", g=2)
    return rearrange(layer_norm(grouped), "b g (c h w) -> b (g c) h w", h=x.shape[2], w=x.shape[3])


def softmax(scores):
    """Shares that add up to 1 in each row, however large the scores. scores: n m"""
    shifted = (scores - scores.amax(dim=1, keepdim=True)).exp()
    return shifted / shifted.sum(dim=1, keepdim=True)


def noise_rate(signal_rate):
    """The r with which signal_rate * x + r * noise keeps variance 1. x, noise: variance 1"""
    return (1 - signal_rate**2) ** 0.5


@dataclass(frozen=True)
class Puzzle:
    """A question with its solution, inputs to try an answer on, and what to say of it.

    draw: a generator -> the arguments, a tuple    right: what a solver should take along
    mistakes: wrong answers worth a sentence of their own, as functions
    """

    solve: Callable
    draw: Callable[[torch.Generator], tuple]
    right: str
    mistakes: dict[str, Callable] = field(default_factory=dict)


def normal(*shape: int) -> Callable[[torch.Generator], tuple]:
    """Draws one tensor of this shape, in double precision."""
    return lambda generator: (torch.randn(shape, generator=generator, dtype=torch.float64),)


def two_and_share(generator: torch.Generator) -> tuple:
    x0, noise = torch.randn(2, 3, 2, 4, 5, generator=generator, dtype=torch.float64)
    return x0, noise, torch.rand(3, generator=generator, dtype=torch.float64)


PUZZLES = [
    Puzzle(
        row_mean,
        normal(3, 4),
        "Dim 1 is the one that vanishes.",
        {"This is the sum: divide by how many they are.": lambda x: x.sum(dim=1)},
    ),
    Puzzle(
        red_channel,
        normal(2, 3, 4, 5),
        "An index takes its axis away; `image[:, 0:1]` would keep it, with length 1.",
        {"You kept the channel axis: index it with 0, not with 0:1.": lambda i: i[:, 0:1]},
    ),
    Puzzle(
        count_numbers,
        normal(2, 3, 4, 5),
        "c times h times w: this is how the latent's 48 times fewer numbers are counted.",
        {"These are the numbers of the whole batch: take one sample.": lambda x: x.numel()},
    ),
    Puzzle(
        tokens,
        normal(2, 3, 4, 5),
        "Attention reads a picture in this form.",
        {
            "You walked down the columns: (h w) is line by line, (w h) is not.": lambda x: (
                rearrange(x, "b c h w -> b (w h) c")
            ),
            "reshape re-cuts the numbers and moves none: an axis must be moved here.": lambda x: (
                x.reshape(x.shape[0], -1, x.shape[1])
            ),
        },
    ),
    Puzzle(
        heads,
        normal(2, 3, 20),
        "(heads d) means: the first d channels are head 0.",
        {
            "(d heads) deals the channels out like cards; head 0 shall have the first d.": (
                lambda x: rearrange(x, "b n (d heads) -> b heads n d", heads=4)
            ),
        },
    ),
    Puzzle(
        mix,
        two_and_share,
        "Axes of length 1 stretch; this is how a whole batch is noised, each to its own t.",
        {
            "You gave the share to the noise: at share 1 nothing but x0 should be left.": (
                lambda x, n, s: x + rearrange(s, "b -> b 1 1 1") * (n - x)
            ),
        },
    ),
    Puzzle(
        distances,
        lambda g: (torch.randn(4, generator=g), torch.randn(3, generator=g)),
        "n 1 against m gives n m: both stretch.",
        {"This is y minus x.": lambda x, y: y - rearrange(x, "n -> n 1")},
    ),
    Puzzle(
        size,
        lambda g: (20, 5, 2, 4),
        "Kernel 3, padding 1: stride 1 keeps the size and stride 2 halves it.",
        {
            "Padding lies on both sides: it counts twice.": lambda h, k, s, p: (h + p - k) // s + 1,
            "One more: the first position counts too.": lambda h, k, s, p: (h + 2 * p - k) // s,
        },
    ),
    Puzzle(
        edge_kernel,
        lambda g: (),
        "What networks call convolution does not flip the kernel; mathematicians' does.",
        {
            "This takes the right neighbour: the kernel lies on the picture as it is written.": (
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
        "The text transformer does this to every token by itself.",
        {
            "torch's var divides by n - 1; norms divide by n: correction=0.": lambda x: (
                (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt()
            ),
            "1e-5 belongs under the root.": lambda x: (
                (x - x.mean(-1, keepdim=True)) / (x.std(-1, correction=0, keepdim=True) + 1e-5)
            ),
        },
    ),
    Puzzle(
        group_norm,
        normal(2, 6, 4, 5),
        "The U-Net does this before every convolution: no sample sees another.",
        {
            "Each channel alone is instance norm: take the 3 channels of a group together.": (
                lambda x: F.group_norm(x, x.shape[1])
            ),
            "All channels together are one group: cut them into 2.": lambda x: F.group_norm(x, 1),
        },
    ),
    Puzzle(
        softmax,
        lambda g: (500 * torch.randn(4, 5, generator=g, dtype=torch.float64),),
        "Taking the largest score off first changes nothing but keeps exp() finite.",
        {
            "exp() of a large score is infinite: take the row's largest off first.": lambda s: (
                s.exp() / s.exp().sum(dim=1, keepdim=True)
            ),
            "These are the columns' shares: every row shall add up to 1.": lambda s: s.softmax(0),
        },
    ),
    Puzzle(
        noise_rate,
        lambda g: (0.3,),
        "Variances add, not spreads: this is the schedule's other rate.",
        {
            "The spreads add up to 1 so, but it is variances that add.": lambda a: 1 - a,
            "This is the variance of the noise part; r is its root.": lambda a: 1 - a**2,
        },
    ),
]
BY_NAME = {puzzle.solve.__name__: puzzle for puzzle in PUZZLES}


def check(name: str, answer: Callable) -> None:
    """Try an answer to the puzzle, a function, and say what came of it."""
    say(check_verdict(name, answer))


def check_verdict(name: str, answer: Callable) -> str:
    """What check says. Puzzle 0 is the example. ValueError: no puzzle is called so."""
    if name not in BY_NAME:
        raise ValueError(f"there is no puzzle {name!r}: they are {', '.join(BY_NAME)}.")
    puzzle = BY_NAME[name]
    label = f"**{list(BY_NAME).index(name)} · {name}**"
    arguments = puzzle.draw(torch.Generator().manual_seed(0))
    try:
        got = answer(*arguments)
    except Exception as error:  # whatever a student's line may raise
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
    """The first thing in which an answer differs: its kind, its shape, a number. None: nothing."""
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
    where = f"At {list(place)} there" if place else "There"
    return f"{where} is {found[place]:.4f}, expected {wanted[place]:.4f}."


def shape_text(shape: torch.Size) -> str:
    return " ".join(map(str, shape)) or "that of one number"


def solution(name: str) -> None:
    """Show the line that solves the puzzle."""
    say(f"```python\n{inspect.getsource(BY_NAME[name].solve).rstrip()}\n```")
