"""Every adapter comes with a handle, an object that removes the adapter again."""

from collections.abc import Iterable
from math import isfinite
from typing import Protocol


class Removable(Protocol):
    """Something that can be removed: a hook of torch, a list entry, or another handle."""

    def remove(self) -> None: ...


class ListEntry:
    """Adds a value to a list of the pipeline, at the end. remove() takes the value out again."""

    def __init__(self, entries: list, value: object):
        self.entries, self.value = entries, value
        entries.append(value)

    def remove(self) -> None:
        self.entries.remove(self.value)


class Handle:
    """Removes an adapter, when remove() is called or at the end of a `with` block.

    An adapter consists of hooks, or of entries in a list of the pipeline. No adapter changes the
    weights. So after all adapters are removed, in any order, the model is the same as before, bit
    for bit.
    """

    def __init__(self, hooks: Iterable[Removable]):
        """Create the hooks. If a hook cannot be created, remove the hooks that were created before.

        hooks: an iterable that creates one hook after another
        """
        self.hooks: list[Removable] = []
        try:
            for hook in hooks:
                self.hooks.append(hook)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Remove the adapter. A second call does nothing."""
        hooks, self.hooks = self.hooks, []
        for hook in hooks:
            hook.remove()

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


def refuse_non_finite(value: float, name: str) -> None:
    """Raise ValueError if the value is NaN or infinite.

    name: the name of the value in the error message, such as "scale"
    """
    if not isfinite(value):
        raise ValueError(f"{name} is {value}: give a finite number, such as 1.")
