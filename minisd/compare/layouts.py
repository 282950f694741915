"""Bring a tensor of another program into our layout.

Two tensors can hold the same numbers in different layouts: with their axes in another order (b h w
c), with merged axes (b n c), or with the heads as a part of the batch.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor

MOST_AXES = 5
Sizes = tuple[int, ...]


class Layout(NamedTuple):
    """How to bring a tensor of theirs into our layout, in three steps.

    split: the shape that the tensor gets first
    order: the order that its axes get then
    shape: our shape, which the tensor gets last
    """

    split: Sizes
    order: tuple[int, ...]
    shape: Sizes

    def apply(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(self.split).permute(self.order).reshape(self.shape)

    @property
    def is_plain(self) -> bool:
        """Whether only the shape changes, not the order of the numbers."""
        return self.order == tuple(range(len(self.order)))


@lru_cache(maxsize=4096)
def possible_layouts(theirs: Sizes, ours: Sizes) -> tuple[Layout, ...]:
    """All layouts that turn their shape into ours. Those that only change the shape come first."""
    found: dict[tuple, Layout] = {}
    for layout in [*split_theirs(theirs, ours), *merge_theirs(theirs, ours)]:
        found.setdefault((layout.split, layout.order), layout)
    return tuple(sorted(found.values(), key=lambda one: not one.is_plain))


def split_theirs(theirs: Sizes, ours: Sizes) -> Iterator[Layout]:
    """The layouts if their tensor has our axes in some order, perhaps merged.

    An example: their b (h w) c for our b c h w.
    """
    axes = [i for i, size in enumerate(ours) if size > 1]
    if len(axes) > MOST_AXES:
        return
    for order in permutations(axes):
        split = tuple(ours[i] for i in order)
        if merges_to(split, theirs):
            back = tuple(order.index(i) for i in axes)
            yield Layout(split, back, ours)


def merge_theirs(theirs: Sizes, ours: Sizes) -> Iterator[Layout]:
    """The layouts if our tensor has their axes in some order, perhaps merged.

    An example: their b h w c for our b (h w) c.
    """
    axes = [i for i, size in enumerate(theirs) if size > 1]
    if len(axes) > MOST_AXES:
        return
    for order in permutations(range(len(axes))):
        sizes = tuple(theirs[axes[i]] for i in order)
        if merges_to(sizes, ours):
            yield Layout(tuple(theirs[i] for i in axes), order, ours)


def merges_to(fine: Sizes, coarse: Sizes) -> bool:
    """Whether merging neighbouring axes of the shape `fine` can give the shape `coarse`.

    Axes of size 1 are ignored.

    >>> merges_to((2, 8, 8, 3), (2, 64, 3)), merges_to((2, 3), (3, 2))
    (True, False)
    """
    rest = [size for size in fine if size > 1]
    for size in coarse:
        product = 1
        while product < size and rest:
            product *= rest.pop(0)
        if product != size:
            return False
    return not rest


def difference(theirs: Tensor, ours: Tensor) -> float:
    """The root mean square of the difference, relative to the root mean square of our tensor."""
    spread = ours.double().pow(2).mean().sqrt().item() or 1.0
    return (theirs.double() - ours.double()).pow(2).mean().sqrt().item() / spread


class Errors(NamedTuple):
    """How two tensors differ.

    error: the root mean square of the difference, relative to the spread
    largest: the largest difference, relative to the spread
    cosine: the cosine of the two tensors
    spread: the root mean square of our tensor
    """

    error: float
    largest: float
    cosine: float
    spread: float


def errors(theirs: Tensor, ours: Tensor) -> Errors:
    """Measure how two tensors of the same shape differ. Equal infinite values count as equal."""
    a, b = theirs.double().flatten(), ours.double().flatten()
    same = torch.isinf(a) & (a == b)
    a, b = a.masked_fill(same, 0), b.masked_fill(same, 0)
    spread, gap = b.pow(2).mean().sqrt().item() or 1.0, (a - b).abs()
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=0).item()
    return Errors(
        gap.pow(2).mean().sqrt().item() / spread, gap.max().item() / spread, cosine, spread
    )


def find_layout(theirs: Tensor, ours: Tensor, enough: float = 1e-6) -> tuple[Layout | None, float]:
    """Find the layout that brings their tensor nearest to ours.

    enough: the search stops at a difference of this size or less
    Returns the layout and the difference that is left. The layout is None if none fits the shapes.
    """
    if theirs.numel() != ours.numel():
        return None, float("inf")
    best, least = None, float("inf")
    for layout in possible_layouts(tuple(theirs.shape), tuple(ours.shape)):
        left = difference(layout.apply(theirs), ours)
        if left < least or best is None:
            best, least = layout, left
        if least <= enough:
            break
    return best, least


def same_numbers(a: Tensor, b: Tensor, tolerance: float = 1e-6) -> bool:
    """Whether two weights are equal in some layout."""
    return a.numel() == b.numel() and find_layout(a, b)[1] <= tolerance


def has_no_nan(tensor: Tensor) -> bool:
    """Whether no number is NaN. Infinity is allowed, because masks contain it."""
    return not torch.isnan(tensor).any().item()
