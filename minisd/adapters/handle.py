"""What every adapter returns: the way to take it off again."""

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

    Adapters are hooks, or entries in a list of the pipeline: the weights themselves are never
    touched. So what is left after the last one is the model as it was, bit for bit, in whatever
    order they went.
    """

    def __init__(self, hooks: Iterable[RemovableHandle | ListEntry]):
        """hooks: may put themselves on one by one; if one fails, none stays on."""
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
    """Raise ValueError for a strength that is no finite number. name: of the argument"""
    if not isfinite(value):
        raise ValueError(f"{name} is {value}: give a finite number, such as 1.")
