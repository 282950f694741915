"""Match the parameters of two models by their values, without looking at names.

A fingerprint consists of three numbers, which do not change when the tensor is reshaped or
transposed. Several parameters can have the same fingerprint: for example, all biases that are 0.
align.py then matches these parameters by their neighbours.
"""

from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import chain, product
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn

FUSED = 3, 2  # one matrix may hold to_q, to_k and to_v, or to_k and to_v


class Fingerprint(NamedTuple):
    """Three numbers by which a tensor is recognized. The sums are computed in float64.

    count: the number of values
    total: the sum of the values
    squares: the sum of the squares of the values
    """

    count: int
    total: float
    squares: float

    def numel(self) -> int:
        return self.count


class Piece(NamedTuple):
    """A whole parameter, or a part of a fused parameter (such as q in a matrix of q, k and v).

    name: the parameter's name
    part: the number of this part, counted from 0
    parts: the number of parts. 1: the whole parameter
    axis: the axis along which the parameter is cut: 0 (the first axis) or -1 (the last axis)
    """

    name: str
    part: int = 0
    parts: int = 1
    axis: int = 0

    def of(self, whole: Tensor) -> Tensor:
        """The values of this part of a parameter."""
        return whole.chunk(self.parts, dim=self.axis)[self.part] if self.parts > 1 else whole


Weights = Mapping[str, Tensor | Fingerprint]  # parameter's name -> parameter, or its fingerprint
Partners = dict[str, Piece]  # our parameter's name -> their parameter, or the part that fits


def make_fingerprint(tensor: Tensor) -> Fingerprint:
    squares = torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64).item() ** 2
    return Fingerprint(tensor.numel(), tensor.detach().sum(dtype=torch.float64).item(), squares)


def distance(a: Fingerprint, b: Fingerprint) -> float:
    """The difference of two fingerprints of equal count, relative to the size of the values."""
    norm = sqrt(max(a.squares, b.squares)) or 1.0
    return abs(a.total - b.total) / (norm * 2) + abs(a.squares - b.squares) / norm**2


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """Every floating-point parameter and buffer, in the order of registration.

    Returns a dictionary: name -> tensor. A tensor with two names is listed once.
    """
    state = chain(network.named_parameters(), network.named_buffers())
    return {name: tensor.detach() for name, tensor in state if tensor.is_floating_point()}


def pieces_of(name: str, weight: Tensor | Fingerprint, counts: Container[int]) -> Iterator[Piece]:
    """Yield a parameter as a whole, then its thirds and halves along the first and last axis.

    counts: the numbers of values that our parameters have. A part with another number of values is
        left out.
    """
    shape = weight.shape if isinstance(weight, Tensor) else ()
    for parts, axis in [(1, 0), *product(FUSED, (0, -1)[: len(shape)])]:
        fits = parts == 1 or (shape[axis] % parts == 0 and shape[axis] > parts)
        if fits and weight.numel() // parts in counts:
            yield from [Piece(name, part, parts, axis) for part in range(parts)]


def match_by_fingerprint(ours: Mapping[str, Tensor], theirs: Weights, tolerance: float) -> Partners:
    """Match the parameters whose fingerprint occurs exactly once on each side."""
    known = {name: make_fingerprint(tensor) for name, tensor in ours.items()}
    counts = {one.count for one in known.values()}
    claims: dict[str, list[tuple[float, Piece]]] = defaultdict(list)
    for their_name, weight in theirs.items():
        for piece in pieces_of(their_name, weight, counts):
            mark = weight if isinstance(weight, Fingerprint) else make_fingerprint(piece.of(weight))
            rivals = [name for name, one in known.items() if one.count == mark.count]
            near = sorted((distance(known[name], mark), name) for name in rivals)
            if is_clear(near, tolerance) and near[0][0] <= tolerance:
                claims[near[0][1]].append((near[0][0], piece))
                if piece.parts == 1:
                    break
    ranked = {name: sorted(claimed) for name, claimed in claims.items()}
    return {name: near[0][1] for name, near in ranked.items() if is_clear(near, tolerance)}


def is_clear(ranked: Sequence[tuple[float, object]], tolerance: float) -> bool:
    """Whether the first of some candidates is much nearer than the second.

    ranked: distances and candidates, the nearest first
    """
    return len(ranked) == 1 or ranked[1][0] > max(4 * ranked[0][0], tolerance / 4)
