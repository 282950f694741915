"""Match the parameters of two models by their numbers, without looking at a name.

A fingerprint does not change when a tensor is reshaped or transposed. Where several parameters
have the same fingerprint (biases that are all 0, norms that are all 1), their neighbours decide.
"""

from collections.abc import Container, Iterator, Mapping
from math import sqrt
from typing import NamedTuple

from torch import Tensor, nn

THIRDS, HALVES = 3, 2  # to_q, to_k and to_v in one matrix; to_k and to_v in one


class Fingerprint(NamedTuple):
    """count: of the values    total: their sum    squares: the sum of their squares, in float64"""

    count: int
    total: float
    squares: float


class Piece(NamedTuple):
    """A parameter, or one of the equal parts of a fused one, cut along an axis."""

    name: str
    part: int = 0
    parts: int = 1
    axis: int = 0


def make_fingerprint(tensor: Tensor) -> Fingerprint:
    values = tensor.detach().double()
    return Fingerprint(values.numel(), values.sum().item(), values.pow(2).sum().item())


def distance(a: Fingerprint, b: Fingerprint) -> float:
    """How far two fingerprints of the same count are apart, relative to the size of the values."""
    norm = sqrt(max(a.squares, b.squares))
    if norm == 0:
        return 0.0
    return abs(a.total - b.total) / (norm * 2) + abs(a.squares - b.squares) / norm**2


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """Every parameter and floating-point buffer, in the order of registration, each once."""
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return {name: tensor.detach() for name, tensor in state.items() if tensor.is_floating_point()}


def pieces_of(name: str, tensor: Tensor) -> Iterator[tuple[Piece, Tensor]]:
    """A parameter as a whole, then in thirds and halves along its first and its last axis."""
    yield Piece(name), tensor
    for parts in (THIRDS, HALVES):
        for axis in sorted({0, tensor.ndim - 1} if tensor.ndim else ()):
            if tensor.shape[axis] % parts == 0 and tensor.shape[axis] > parts:
                for part, piece in enumerate(tensor.chunk(parts, dim=axis)):
                    yield Piece(name, part, parts, axis), piece


def prints_of(
    name: str, weight: Tensor | Fingerprint, counts: Container[int]
) -> Iterator[tuple[Piece, Fingerprint]]:
    """The fingerprints of a parameter and its parts, of those that have a count of ours."""
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
    """Our name -> their piece, for each fingerprint that exactly one parameter on each side has."""
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
