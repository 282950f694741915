"""What every adapter returns: the way to take it off again."""

from collections.abc import Iterable
from math import isfinite

from torch.utils.hooks import RemovableHandle


class Handle:
    """Takes an adapter off with remove(), or at the end of a `with` block.

    Adapters are hooks: the weights themselves are never touched. So what is left after the last one
    is the model as it was, bit for bit, in whatever order they went.
    """

    def __init__(self, hooks: Iterable[RemovableHandle]):
        self.hooks = list(hooks)

    def remove(self) -> None:
        """Take the adapter off. Doing it twice does no harm."""
        for hook in self.hooks:
            hook.remove()
        self.hooks = []

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def refuse_non_finite(value: float, name: str) -> None:
    """Raise ValueError for a strength that is no finite number. name: of the argument"""
    if not isfinite(value):
        raise ValueError(f"{name} is {value}: give a finite number, such as 1.")
