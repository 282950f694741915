"""The handle that every adapter returns. It removes the adapter again."""

from collections.abc import Iterable
from math import isfinite

from torch.utils.hooks import RemovableHandle


class ListEntry:
    """A value at the end of a list that the pipeline owns, until remove()."""

    def __init__(self, entries: list, value: object):
        self.entries, self.value = entries, value
        entries.append(value)

    def remove(self) -> None:
        self.entries.remove(self.value)


class Handle:
    """Takes an adapter off with remove(), or at the end of a `with` block.

    Adapters are hooks, or entries in a list of the pipeline. They never touch the weights. So the
    model is the same as before, bit for bit, after the last one is removed, in any order.
    """

    def __init__(self, hooks: Iterable[RemovableHandle | ListEntry]):
        """hooks: created one by one. If one fails, those before it are removed."""
        self.hooks: list[RemovableHandle | ListEntry] = []
        try:
            for hook in hooks:
                self.hooks.append(hook)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take the adapter off. Doing it twice does no harm."""
        hooks, self.hooks = self.hooks, []
        for hook in hooks:
            hook.remove()

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def refuse_non_finite(value: float, name: str) -> None:
    """Raises ValueError if the value is not finite. name: of the argument"""
    if not isfinite(value):
        raise ValueError(f"{name} is {value}: give a finite number, such as 1.")
