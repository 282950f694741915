"""Put a student's parts into the package for a while, so that the mini is built from them."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pkgutil import resolve_name
from typing import Any


@contextmanager
def install_parts(replacements: dict[str, Any]) -> Iterator[None]:
    """Replace functions, classes and methods by others. At the end, the old ones come back.

    replacements: a name in the package, such as "minisd.attention.attend" or
        "minisd.schedule.Level.alpha_bar" -> the new function or class

    A function that several modules have imported is replaced in all of them, and in the tables that
    hold it, such as samplers.SAMPLERS. sampling.SPACINGS holds methods: they are replaced there
    too. Models that are built inside the `with` block have the new parts.
    """
    undo: list[Callable[[], None]] = []
    try:
        for name, new in replacements.items():
            module, _, attribute = name.rpartition(".")
            owner = resolve_name(module)
            old = vars(owner)[attribute]
            if isinstance(owner, type):
                undo.append(set_value(owner, attribute, new))
            for holder, key in find_holders(old):
                undo.append(set_value(holder, key, new))
        yield
    finally:
        for step in reversed(undo):
            step()


def find_holders(thing: Any) -> list[tuple[Any, str]]:
    """Every module of the package that holds this object, and every dictionary in one."""
    holders = []
    packages = ("minisd.", "mine_")
    for module in [one for name, one in sys.modules.items() if name.startswith(packages)]:
        for key, value in list(vars(module).items()):
            if value is thing:
                holders.append((module, key))
            elif isinstance(value, dict) and not key.startswith("__"):
                holders += [(value, inner) for inner, held in value.items() if held is thing]
    return holders


def set_value(holder: Any, key: Any, new: Any) -> Callable[[], None]:
    """Set an attribute or an entry. Returns a function that undoes it."""
    if isinstance(holder, dict):
        old = holder[key]
        holder[key] = new
        return lambda: holder.__setitem__(key, old)
    old = vars(holder)[key]
    setattr(holder, key, new)
    return lambda: setattr(holder, key, old)
