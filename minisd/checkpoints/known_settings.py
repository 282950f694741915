"""Settings in the JSON files of other programs: obeyed, known not to matter, or refused by name.

known_settings.json holds one table for each kind of file. A name that no table has is refused, so
that nothing written in a file is passed over in silence. docs/formats.md shows the tables. A value
must be of its default's type; known_types.json has the types that no default shows.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, reduce
from operator import or_
from pathlib import Path
from types import NoneType

from minisd.files.json_files import USUAL_RANGE, check_value, shorten

STATED_TYPES = json.loads(Path(__file__).with_name("known_types.json").read_text(encoding="utf-8"))
TYPE_WORDS = {"int": int, "number": float, "bool": bool, "text": str, "dict": dict, "list": tuple}
TYPE_WORDS |= {f"{word}s": tuple[kind, ...] for word, kind in TYPE_WORDS.items() if word != "list"}
TYPE_WORDS["null"] = NoneType
REQUIRED = object()  # in place of a default: the reference has none that fits, so say it


@dataclass(frozen=True)
class KnownSettings:
    """What one kind of file may say.

    file: such as "unet/config.json"
    obeyed: name -> the value of an absent setting, the reference's default, or REQUIRED
    fixed: name -> the values that mean what this code does, and last what an absent one means
    ignored: name -> why it cannot matter
    """

    file: str
    obeyed: Mapping[str, object]
    fixed: Mapping[str, tuple[tuple, object]]
    ignored: Mapping[str, str]

    def read(self, stored: Mapping[str, object]) -> dict[str, object]:
        """The obeyed settings, the absent ones filled in.

        Names that begin with an underscore are notes of the program that wrote the file. A setting
        that is null sets nothing, so an unknown one may be null.
        Raises ValueError for a required setting that is absent, an unknown setting, a value of
        another type, and a value of a fixed one that means something else.
        """
        part = self.file.removesuffix("/config.json")
        for name, (allowed, absent) in self.fixed.items():
            value = stored.get(name, absent)
            if not any(equal_values(value, one) for one in allowed):
                known = " or ".join(repr(one) for one in allowed)
                said = f"{name} = {shorten(value)}" + (
                    "" if name in stored else ", as it says nothing"
                )
                raise ValueError(f"has {said} in its {part}: only {known} is known here")
        for name, value in stored.items():
            known = name in self.obeyed or name in self.fixed or name in self.ignored
            if not known and not name.startswith("_") and value is not None:
                said = f"{shorten(name)[1:-1]} = {shorten(value)} in its {self.file}"
                said = f"{said}, a setting unknown here"
                raise ValueError(f"has {said}: delete it if the model is the same without it")
        values = {name: stored.get(name, default) for name, default in self.obeyed.items()}
        for name, value in values.items():
            if value is REQUIRED:
                raise ValueError(f"lacks {name!r} in its {self.file}: get another copy")
            default = 0 if self.obeyed[name] is REQUIRED else self.obeyed[name]
            below_1 = type(default) is int and default < 1  # such as -1 for "none"
            limits = (default, USUAL_RANGE[int][1]) if below_1 else None
            check_value(name, value, setting_type(name, default), limits, f" in its {part}")
        return values


def setting_type(name: str, default: object) -> object:
    """The type of a setting's values. A list is of what its first value is.

    >>> setting_type("r", 8), setting_type("use_rslora", False)
    (<class 'int'>, <class 'bool'>)
    """
    if name in STATED_TYPES:
        return reduce(or_, [TYPE_WORDS[word] for word in STATED_TYPES[name].split(" or ")])
    return tuple[type(default[0]), ...] if isinstance(default, list) else type(default)


def equal_values(a: object, b: object) -> bool:
    """Whether two JSON values mean the same: 1 and 1.0 do, 1 and true do not."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(equal_values(x, y) for x, y in zip(a, b))
    return a == b


@cache
def settings_tables() -> dict[str, KnownSettings]:
    """All tables, by the file and, in parentheses, what it belongs to where that is not plain."""
    stored = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return {name: parse_table(name, parts) for name, parts in stored.items()}


def parse_table(name: str, stored: Mapping[str, Mapping]) -> KnownSettings:
    """One table. In JSON, fixed is name -> [allowed values, absent], ignored is why -> names."""
    required = dict.fromkeys(stored.get("required", ()), REQUIRED)
    fixed = {key: (tuple(some), absent) for key, (some, absent) in stored.get("fixed", {}).items()}
    ignored = {key: why for why, keys in stored.get("ignored", {}).items() for key in keys}
    return KnownSettings(name.partition(" (")[0], required | stored["obeyed"], fixed, ignored)
