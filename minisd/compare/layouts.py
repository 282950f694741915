"""Bring a tensor of another program into our layout.

Two tensors can hold the same numbers in different layouts: with their axes in another order (b h w
c), with merged axes (b n c), or with the heads as a part of the batch.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate, permutations
from math import prod
from operator import mul
from typing import NamedTuple

import torch
from torch import Tensor

MOST_AXES = 5
Sizes = tuple[int, ...]


class Layout(NamedTuple):
    """How to bring a tensor of theirs into our layout, in three steps.

    split: the shape to which the tensor is reshaped in step 1
    order: the order into which the axes are put in step 2
    shape: our shape, to which the tensor is reshaped in step 3
    """

    split: Sizes
    order: tuple[int, ...]
    shape: Sizes

    def apply(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(self.split).permute(self.order).reshape(self.shape)


@lru_cache(maxsize=4096)
def possible_layouts(theirs: Sizes, ours: Sizes) -> tuple[Layout, ...]:
    """All layouts that turn their shape into ours. Layouts that keep the order of axes come first.

    There are two kinds of layouts. For the first kind, our axes are reordered and merged to theirs:
    for example, ours are b c h w, and theirs are b (h w) c. The layout does the inverse. For the
    second kind, their axes are reordered and merged to ours: for example, theirs are b c h w, and
    ours are b (h w) c.
    """
    found = []
    for sizes, order in orders_that_merge(ours, theirs):
        back = tuple(order.index(i) for i in range(len(order)))
        found.append(Layout(tuple(sizes[i] for i in order), back, ours))
    found += [Layout(sizes, order, ours) for sizes, order in orders_that_merge(theirs, ours)]
    return tuple(sorted(dict.fromkeys(found), key=lambda one: [*one.order] != sorted(one.order)))


def orders_that_merge(fine: Sizes, coarse: Sizes) -> Iterator[tuple[Sizes, Sizes]]:
    """Yield each order in which the axes of the shape `fine` can be merged to the shape `coarse`.

    Each item is a pair: the sizes of the axes of `fine`, and the order. Axes of size 1 are left
    out.
    """
    sizes = tuple(size for size in fine if size > 1)
    for order in permutations(range(len(sizes))) if len(sizes) <= MOST_AXES else ():
        if merges_to(tuple(sizes[i] for i in order), coarse):
            yield sizes, order


def merges_to(fine: Sizes, coarse: Sizes) -> bool:
    """Whether merging neighbouring axes of the shape `fine` can give the shape `coarse`.

    Axes of size 1 are ignored.

    >>> merges_to((2, 8, 8, 3), (2, 64, 3)), merges_to((2, 3), (3, 2))
    (True, False)
    """
    ends = set(accumulate(fine, mul, initial=1))  # the products of the first 0, 1, 2, … sizes
    return prod(fine) == prod(coarse) and ends.issuperset(accumulate(coarse, mul))


def in_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it has this precision already."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def rms(tensor: Tensor) -> float:
    """The root mean square. The sum is computed in float64."""
    norm = torch.linalg.vector_norm(tensor, dtype=torch.float64).item()
    return norm / max(tensor.numel(), 1) ** 0.5


class Errors(NamedTuple):
    """How two tensors differ.

    error: the root mean square of the difference, relative to the spread
    largest: the largest difference, relative to the spread
    cosine: the cosine of the angle between the two tensors
    spread: the root mean square of our tensor
    """

    error: float
    largest: float
    cosine: float
    spread: float


def errors(theirs: Tensor, ours: Tensor) -> Errors:
    """Measure how two tensors of the same shape differ. Equal infinite values count as equal."""
    a, b = in_float32(theirs), in_float32(ours)
    if torch.isinf(b).any():
        a, b = (one.masked_fill(torch.isinf(a) & (a == b), 0) for one in (a, b))
    spread, gap = rms(b) or 1.0, a - b
    cosine = (a * b).mean(dtype=torch.float64).item() / (rms(a) * rms(b) or 1.0)
    return Errors(rms(gap) / spread, gap.abs().max().item() / spread, cosine, spread)


def find_layout(theirs: Tensor, ours: Tensor, enough: float = 1e-3) -> tuple[Layout | None, float]:
    """Find the layout that brings their tensor nearest to ours.

    enough: the search stops at a difference of this size or less
    Returns the layout and the difference that is left. The layout is None if the shapes do not fit.
    """
    ours = in_float32(ours)
    best, least, spread = None, float("inf"), rms(ours) or 1.0
    for layout in possible_layouts(tuple(theirs.shape), tuple(ours.shape)):
        left = rms(layout.apply(in_float32(theirs)) - ours) / spread
        if left < least or best is None:
            best, least = layout, left
        if least <= enough:
            break
    return best, least


def same_numbers(a: Tensor, b: Tensor, tolerance: float = 1e-6) -> bool:
    """Whether two weights are equal in some layout."""
    return find_layout(a, b)[1] <= tolerance
