"""Check the settings in files of other programs. minisd obeys, ignores or refuses each setting.

known_settings.json holds one table of settings for each kind of file. If a file has a setting that
is not in this table, minisd refuses the file, so that no setting is ignored silently.
docs/formats.md shows the tables. The value of a setting must have the same type as the default of
the setting. If the default does not show the type, known_types.json states the type.
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
REQUIRED = object()  # used instead of a default if the file must state a value


@dataclass(frozen=True)
class KnownSettings:
    """The settings that one kind of file may have.

    file: the file's name, such as "unet/config.json"
    obeyed: name of a setting -> the default in the original program, or REQUIRED
    fixed: name of a setting -> the allowed values, and the default in the original program. minisd
        always does what the allowed values say, so it refuses all other values
    ignored: name of a setting -> the reason why the setting does not matter
    """

    file: str
    obeyed: Mapping[str, object]
    fixed: Mapping[str, tuple[tuple, object]]
    ignored: Mapping[str, str]

    def read(self, stored: Mapping[str, object]) -> dict[str, Any]:
        """Return the obeyed settings of a file. A missing setting gets its default.

        stored: all settings in the file

        Settings whose names begin with an underscore are ignored. They only describe the program
        that wrote the file. Unknown settings with the value null are also ignored, because null
        changes nothing.

        Raises ValueError if a required setting is missing, if a setting is unknown, if a value has
        the wrong type, or if a fixed setting has a value that minisd does not know.
        """
        folder, ending, _ = self.file.partition("/config.json")
        where = f"in the config.json of the {folder}" if ending else f"in its {folder}"
        for name, (allowed, absent) in self.fixed.items():
            value = stored.get(name, absent)
            if not any(equal_values(value, one) for one in allowed):
                known = " or ".join(repr(one) for one in allowed)
                found = f"{name} = {shorten(value)}{'' if name in stored else ' (the default)'}"
                raise ValueError(f"has {found} {where}: minisd knows only {known}")
        for name, value in stored.items():
            known = name in self.obeyed or name in self.fixed or name in self.ignored
            if not known and not name.startswith("_") and value is not None:
                found = f"{shorten(name)[1:-1]} = {shorten(value)} {where}"
                advice = "delete the setting if the model does not need it"
                raise ValueError(f"has the unknown setting {found}: {advice}")
        values = {name: stored.get(name, default) for name, default in self.obeyed.items()}
        for name, value in values.items():
            if value is REQUIRED:
                raise ValueError(f"lacks the setting {name!r} {where}: get another copy")
            default = 0 if self.obeyed[name] is REQUIRED else self.obeyed[name]
            low = default if type(default) is int and default < 1 else None  # such as -1: none
            limits = None if low is None else (low, USUAL_RANGE[int][1])
            check_value(name, value, setting_type(name, default), limits, f" {where}")
        return values


def setting_type(name: str, default: object) -> object:
    """The type that the values of a setting must have.

    If known_types.json does not state the type, the default of the setting shows the type. If the
    default is a list, its first value shows the type of all values in the list.

    >>> setting_type("r", 8), setting_type("use_rslora", False)
    (<class 'int'>, <class 'bool'>)
    """
    if name in STATED_TYPES:
        return reduce(or_, [TYPE_WORDS[word] for word in STATED_TYPES[name].split(" or ")])
    return tuple[type(default[0]), ...] if isinstance(default, list) else type(default)


def equal_values(a: object, b: object) -> bool:
    """Whether two values from JSON files are equal. 1 equals 1.0, but 1 does not equal true."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(equal_values, a, b))
    return a == b


@cache
def settings_tables() -> dict[str, KnownSettings]:
    """Read all tables of settings. Returns a dictionary: name of a file -> table of its settings.

    A model and a ControlNet may have files of the same name. The names of these tables then end
    with "(model)" and "(ControlNet)", as in ".yaml (model)".
    """
    stored = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return {name: parse_table(name, parts) for name, parts in stored.items()}


def parse_table(name: str, stored: Mapping[str, Mapping]) -> KnownSettings:
    """Turn one table of known_settings.json into KnownSettings.

    In JSON, "fixed" is a dictionary: name of a setting -> [allowed values, default]. "ignored" is a
    dictionary: reason -> names of settings.
    """
    required = dict.fromkeys(stored.get("required", ()), REQUIRED)
    fixed = {key: (tuple(some), absent) for key, (some, absent) in stored.get("fixed", {}).items()}
    ignored = {key: why for why, keys in stored.get("ignored", {}).items() for key in keys}
    obeyed = {**required, **stored["obeyed"]}
    return KnownSettings(name.partition(" (")[0], obeyed, fixed, ignored)
