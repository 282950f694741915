"""Put a student's parts into the package for a while, so that the mini is built from them."""

import sys
from collections.abc import Callable, Iterator, Set
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
    too. Models that are built inside the `with` block have the new parts. A module that is first
    imported inside the block gets the new parts, and the old ones at the end.
    """
    undo: list[Callable[[], None]] = []
    pairs = []
    known = set(sys.modules)
    try:
        for name, new in replacements.items():
            owner, attribute, old = find_part(name)
            pairs.append((old, new))
            if isinstance(owner, type):
                undo.append(set_value(owner, attribute, new))
            for holder, key in find_holders(old):
                undo.append(set_value(holder, key, new))
        yield
    finally:
        for step in reversed(undo):
            step()
        for old, new in pairs:
            for holder, key in find_holders(new, skip=known | {getattr(new, "__module__", "")}):
                set_value(holder, key, old)


def find_part(name: str) -> tuple[Any, str, Any]:
    """The module or class that holds a part of this name now, the part's own name, and the part."""
    path, _, attribute = name.rpartition(".")
    owner = resolve_name(path)
    return owner, attribute, vars(owner)[attribute]


def find_holders(thing: Any, skip: Set[str] = frozenset()) -> list[tuple[Any, str]]:
    """Every module of the package that holds this object, and every dictionary in one.

    skip: the names of modules to leave out
    """
    holders = []
    packages = ("minisd.", "mine_")
    found = [(name, one) for name, one in sys.modules.items() if name.startswith(packages)]
    for module in [one for name, one in found if name not in skip]:
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
