"""Match the parameters of two models by their values, without looking at names.

A fingerprint of a tensor does not change when the tensor is reshaped or transposed. Several
parameters can have the same fingerprint: for example, all biases that are 0. align.py then matches
them by their neighbours.
"""

from collections.abc import Container, Iterator, Mapping
from math import sqrt
from typing import NamedTuple

from torch import Tensor, nn

THIRDS, HALVES = 3, 2  # one matrix may hold to_q, to_k and to_v, or to_k and to_v


class Fingerprint(NamedTuple):
    """Three numbers by which a tensor is recognized. The sums are computed in float64.

    count: the number of values
    total: the sum of the values
    squares: the sum of the squares of the values
    """

    count: int
    total: float
    squares: float


class Piece(NamedTuple):
    """A whole parameter, or one of the equal parts of a fused one (such as q, k and v in one).

    name: the parameter's name
    part: the number of this part, counted from 0
    parts: the number of parts. 1: the whole parameter
    axis: the axis along which the parameter is cut
    """

    name: str
    part: int = 0
    parts: int = 1
    axis: int = 0


def make_fingerprint(tensor: Tensor) -> Fingerprint:
    values = tensor.detach().double()
    return Fingerprint(values.numel(), values.sum().item(), values.pow(2).sum().item())


def distance(a: Fingerprint, b: Fingerprint) -> float:
    """The difference of two fingerprints with the same count, relative to the values' size."""
    norm = sqrt(max(a.squares, b.squares))
    if norm == 0:
        return 0.0
    return abs(a.total - b.total) / (norm * 2) + abs(a.squares - b.squares) / norm**2


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """Every floating-point parameter and buffer, in the order of registration.

    Returns a dictionary: name -> tensor. A tensor with two names is listed once.
    """
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return {name: tensor.detach() for name, tensor in state.items() if tensor.is_floating_point()}


def pieces_of(name: str, tensor: Tensor) -> Iterator[tuple[Piece, Tensor]]:
    """Yield a parameter as a whole, then its thirds and halves along the first and last axis."""
    yield Piece(name), tensor
    for parts in (THIRDS, HALVES):
        for axis in sorted({0, tensor.ndim - 1} if tensor.ndim else ()):
            if tensor.shape[axis] % parts == 0 and tensor.shape[axis] > parts:
                for part, piece in enumerate(tensor.chunk(parts, dim=axis)):
                    yield Piece(name, part, parts, axis), piece


def prints_of(
    name: str, weight: Tensor | Fingerprint, counts: Container[int]
) -> Iterator[tuple[Piece, Fingerprint]]:
    """Yield the fingerprints of a parameter and of its parts.

    counts: the numbers of values that our parameters have. A part with another number of values is
        left out.
    """
    if isinstance(weight, Fingerprint):
        if weight.count in counts:
            yield Piece(name), weight
        return
    for piece, part in pieces_of(name, weight):
        if part.numel() in counts:
            yield piece, make_fingerprint(part)


def match_by_fingerprint(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor | Fingerprint], tolerance: float
) -> dict[str, Piece]:
    """Match the parameters whose fingerprint occurs exactly once on each side.

    Returns a dictionary: our name -> their parameter or part of a parameter.
    """
    known = {name: make_fingerprint(tensor) for name, tensor in ours.items()}
    by_count: dict[int, list[str]] = {}
    for name, print_ in known.items():
        by_count.setdefault(print_.count, []).append(name)
    claims: dict[str, list[tuple[float, Piece]]] = {}
    for their_name, weight in theirs.items():
        for piece, print_ in prints_of(their_name, weight, by_count):
            near = sorted((distance(known[n], print_), n) for n in by_count[print_.count])
            alone = len(near) == 1 or near[1][0] > max(4 * near[0][0], tolerance / 4)
            if near[0][0] <= tolerance and alone:
                claims.setdefault(near[0][1], []).append((near[0][0], piece))
                if piece.parts == 1:
                    break
    found = {}
    for name, claimed in claims.items():
        claimed.sort()
        if len(claimed) == 1 or claimed[1][0] > max(4 * claimed[0][0], tolerance / 4):
            found[name] = claimed[0][1]
    return found
