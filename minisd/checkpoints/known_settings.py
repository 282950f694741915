"""Settings in the JSON files of other programs: obeyed, known not to matter, or refused by name.

known_settings.json holds one table for each kind of file. A name that no table has is refused, so
that nothing written in a file is passed over in silence. docs/formats.md shows the tables.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

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
        Raises ValueError for a required setting that is absent, an unknown setting, and a value
        of a fixed one that means something else.
        """
        part = self.file.removesuffix("/config.json")
        for name, (allowed, absent) in self.fixed.items():
            value = stored.get(name, absent)
            if not any(same(value, one) for one in allowed):
                known = " or ".join(repr(one) for one in allowed)
                said = f"{name} = {value!r}" + ("" if name in stored else ", as it says nothing")
                raise ValueError(f"has {said} in its {part}: only {known} is known here")
        for name, value in stored.items():
            known = name in self.obeyed or name in self.fixed or name in self.ignored
            if not known and not name.startswith("_") and value is not None:
                said = f"{name} = {value!r} in its {self.file}, a setting unknown here"
                raise ValueError(f"has {said}: delete it if the model is the same without it")
        values = {name: stored.get(name, default) for name, default in self.obeyed.items()}
        for name, value in values.items():
            if value is REQUIRED:
                raise ValueError(f"lacks {name!r} in its {self.file}: get another copy")
        return values


def same(a: object, b: object) -> bool:
    """Whether two JSON values mean the same: 1 and 1.0 do, 1 and true do not."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return a == b


@cache
def tables() -> dict[str, KnownSettings]:
    """All tables, by the file and, in parentheses, what it belongs to where that is not plain."""
    stored = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return {name: table_of(name, parts) for name, parts in stored.items()}


def table_of(name: str, stored: Mapping[str, Mapping]) -> KnownSettings:
    """One table. In JSON, fixed is name -> [allowed values, absent], ignored is why -> names."""
    required = dict.fromkeys(stored.get("required", ()), REQUIRED)
    fixed = {key: (tuple(some), absent) for key, (some, absent) in stored.get("fixed", {}).items()}
    ignored = {key: why for why, keys in stored.get("ignored", {}).items() for key in keys}
    return KnownSettings(name.partition(" (")[0], required | stored["obeyed"], fixed, ignored)
