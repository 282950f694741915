"""The settings in JSON files of other programs: minisd obeys, ignores or refuses each by its name.

known_settings.json holds one table for each kind of file. minisd refuses a setting that its table
does not list, so that it never ignores one silently. docs/formats.md shows the tables. A value must
have the type of its default. known_types.json lists the types that no default shows.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, reduce
from operator import or_
from pathlib import Path
from types import NoneType
from typing import Any

from minisd.files.json_files import USUAL_RANGE, check_value, shorten

STATED_TYPES = json.loads(Path(__file__).with_name("known_types.json").read_text(encoding="utf-8"))
TYPE_WORDS = {"int": int, "number": float, "bool": bool, "text": str, "dict": dict, "list": tuple}
TYPE_WORDS |= {f"{word}s": tuple[kind, ...] for word, kind in TYPE_WORDS.items() if word != "list"}
TYPE_WORDS["null"] = NoneType
REQUIRED = object()  # where the reference has no fitting default: the file must state the setting


@dataclass(frozen=True)
class KnownSettings:
    """The settings that one kind of file may have.

    file: such as "unet/config.json"
    obeyed: name -> its default, which is that of the reference, or REQUIRED
    fixed: name -> the values that mean what minisd does, and the default
    ignored: name -> why it does not matter
    """

    file: str
    obeyed: Mapping[str, object]
    fixed: Mapping[str, tuple[tuple, object]]
    ignored: Mapping[str, str]

    def read(self, stored: Mapping[str, object]) -> dict[str, Any]:
        """The obeyed settings. Missing ones get their defaults.

        Names that begin with an underscore are notes by the program that wrote the file. An unknown
        setting may be null, because null sets nothing.
        Raises ValueError for a missing required setting, an unknown setting, a value of the wrong
        type, and a value of a fixed setting that means something else.
        """
        part = self.file.removesuffix("/config.json")
        for name, (allowed, absent) in self.fixed.items():
            value = stored.get(name, absent)
            if not any(equal_values(value, one) for one in allowed):
                known = " or ".join(repr(one) for one in allowed)
                found = f"{name} = {shorten(value)}{'' if name in stored else ' (the default)'}"
                raise ValueError(f"has {found} in its {part}: minisd knows only {known}")
        for name, value in stored.items():
            known = name in self.obeyed or name in self.fixed or name in self.ignored
            if not known and not name.startswith("_") and value is not None:
                found = f"{shorten(name)[1:-1]} = {shorten(value)} in its {self.file}"
                advice = "delete it if the model is the same without it"
                raise ValueError(f"has {found}, which minisd does not know: {advice}")
        values = {name: stored.get(name, default) for name, default in self.obeyed.items()}
        for name, value in values.items():
            if value is REQUIRED:
                raise ValueError(f"lacks {name!r} in its {self.file}: get another copy")
            default = 0 if self.obeyed[name] is REQUIRED else self.obeyed[name]
            limits = None
            if type(default) is int and default < 1:  # such as -1 for "none"
                limits = (default, USUAL_RANGE[int][1])
            check_value(name, value, setting_type(name, default), limits, f" in its {part}")
        return values


def setting_type(name: str, default: object) -> object:
    """The type of a setting's values. A list has the type of its first value.

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
        return len(a) == len(b) and all(map(equal_values, a, b))
    return a == b


@cache
def settings_tables() -> dict[str, KnownSettings]:
    """All tables by the name of the file, with its owner in parentheses if several have one."""
    stored = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return {name: parse_table(name, parts) for name, parts in stored.items()}


def parse_table(name: str, stored: Mapping[str, Mapping]) -> KnownSettings:
    """One table. In JSON, fixed is name -> [allowed values, default], ignored is why -> names."""
    required = dict.fromkeys(stored.get("required", ()), REQUIRED)
    fixed = {key: (tuple(some), absent) for key, (some, absent) in stored.get("fixed", {}).items()}
    ignored = {key: why for why, keys in stored.get("ignored", {}).items() for key in keys}
    obeyed = {**required, **stored["obeyed"]}
    return KnownSettings(name.partition(" (")[0], obeyed, fixed, ignored)
