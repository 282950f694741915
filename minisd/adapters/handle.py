"""The handle that every adapter returns. It removes the adapter again."""

from collections.abc import Iterable
from math import isfinite
from typing import Protocol


class Removable(Protocol):
    """What a handle consists of: hooks of torch, list entries, other handles."""

    def remove(self) -> None: ...


class ListEntry:
    """A value at the end of a list that the pipeline owns, until remove()."""

    def __init__(self, entries: list, value: object):
        self.entries, self.value = entries, value
        entries.append(value)

    def remove(self) -> None:
        self.entries.remove(self.value)


class Handle:
    """Takes an adapter off with remove(), or at the end of a `with` block.

    Adapters are hooks, or entries in a list of the pipeline. They never change the weights. So once
    all of them are removed, in any order, the model is the same as before, bit for bit.
    """

    def __init__(self, hooks: Iterable[Removable]):
        """hooks: created one by one. If creating one fails, those before it are removed."""
        self.hooks: list[Removable] = []
        try:
            for hook in hooks:
                self.hooks.append(hook)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take the adapter off. A second call does nothing."""
        hooks, self.hooks = self.hooks, []
        for hook in hooks:
            hook.remove()

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def refuse_non_finite(value: float, name: str) -> None:
    """Raise ValueError if the value is NaN or infinite. name: of the argument, for the error"""
    if not isfinite(value):
        raise ValueError(f"{name} is {value}: give a finite number, such as 1.")
