"""JSON from strangers: read within bounds, then checked against the types of a dataclass.

A file is never trusted: it may be huge, nested a million deep, say one thing twice, or be no file
at all. Whatever is wrong becomes a ValueError that reads well after the file's name.
"""

import json
import re
import reprlib
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from itertools import chain
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

# Python makes some 50 bytes of objects from each byte of "[{},{},{}, …", so this is at most 500 MB
# and two seconds. A CLIP's tokenizer.json has 4 MB, a shard index less than 1 MB.
LARGEST = 10 * 10**6  # bytes
DEEPEST = 30  # lists and dictionaries inside one another; a tokenizer.json has 6
LONGEST_NUMBER = 100  # characters; transformers writes 10**30 where it means "no limit"
MOST_ITEMS = 100_000  # of a tuple: a schedule's own betas
SHORTENED = 80  # characters of a value that an error quotes

T = TypeVar("T")
Range = tuple[float, float]  # the least and the most that a number may be
USUAL_RANGE = {int: (1, 10**6), float: (-(10**6), 10**6)}  # sizes and counts; rates and scales


# ---- reading -----------------------------------------------------------------------------------


def read_json(path: Path) -> dict:
    """A .json file with names and values.

    Raises ValueError if it is absent, no regular file, cut off, too large, or something else.
    """
    try:
        content = parse_json(read_at_most(path, LARGEST))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): fetch it again.") from error
    except ValueError as error:
        raise ValueError(f"{path} {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no names and values: fetch it again.")
    return content


def read_at_most(path: Path, most: int) -> bytes:
    """A whole regular file. A pipe would wait for ever, and a device never end.

    Raises ValueError, to be read after the path, for anything else and for more than `most` bytes.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("is a folder, a pipe or a device: give a file")
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"has more than {most:,} bytes, which no such file needs: fetch it again")
    return content


def parse_json(text: str | bytes, largest: int = LARGEST) -> object:
    """What a JSON text says: dictionaries, lists, texts, numbers, true, false and None.

    Raises ValueError, to be read after a file's name, for what is no JSON, is too large or too
    deep, names one thing twice, or holds NaN, an endless number or a text that is not Unicode.
    """
    if len(text) > largest:
        raise ValueError(f"has more than {largest:,} bytes of JSON: get another copy")
    try:
        text = text.decode() if isinstance(text, bytes) else text
        content = json.loads(
            text.removeprefix("\ufeff"),  # Windows' editors put this mark in front
            object_pairs_hook=dictionary,
            parse_int=lambda digits: parse_number(int, digits),
            parse_float=lambda digits: parse_number(float, digits),
            parse_constant=lambda name: parse_number(float, name),
        )
    except UnicodeDecodeError as error:
        raise ValueError("is no UTF-8 text, as JSON is: get another copy") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"is no JSON from {place} on: fetch it again") from error
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error
    check_depth_and_texts(content)
    return content


HALF_CHARACTER = re.compile(r"[\ud800-\udfff]")  # UTF-16 writes some as two, and no text has one
TOO_DEEP = f"has values more than {DEEPEST} levels inside one another: get another copy"


def dictionary(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Raises ValueError for a name that is there twice: nobody knows which value is meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"has {shorten(twice)} twice: delete the wrong one")
    return found


def parse_number(kind: type, digits: str) -> float:
    """Raises ValueError for NaN, and for digits that take time to no purpose.

    Infinity is no JSON, but diffusers writes it ("lambda_min_clipped": -Infinity). check_value
    lets none through.
    """
    if digits == "NaN" or len(digits) > LONGEST_NUMBER:
        raise ValueError(f"has the number {shorten(digits)}: get another copy")
    return kind(digits)


def check_depth_and_texts(content: object) -> None:
    """Go down level by level. Raises ValueError for too many, and for half a character."""
    level = [content]
    for _ in range(DEEPEST + 1):
        texts = [one for one in level if isinstance(one, str)]
        texts += [name for one in level if isinstance(one, dict) for name in one]
        if any(map(HALF_CHARACTER.search, texts)):
            raise ValueError("has a text with half a character (\\ud800 …): get another copy")
        dictionaries = [one.values() for one in level if isinstance(one, dict)]
        level = list(chain(*dictionaries, *(one for one in level if isinstance(one, list))))
        if not level:
            return
    raise ValueError(TOO_DEEP)


# ---- what an error quotes ----------------------------------------------------------------------

SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxlong = SHORT.maxother = SHORTENED
SHORT.maxlist = SHORT.maxtuple = 8


def shorten(value: object) -> str:
    """A value as Python writes it, on one line of at most 80 characters.

    >>> shorten([1, "a\\n"]), len(shorten("x" * 10**6))
    ("[1, 'a\\\\n']", 80)
    """
    try:
        text = SHORT.repr(value)
    except ValueError:  # Python writes no number of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= SHORTENED else f"{text[: SHORTENED - 1]}…"


# ---- a dictionary against a dataclass ----------------------------------------------------------


def build_dataclass(
    kind: type[T], stored: object, ranges: Mapping[str, Range] = {}, part: str = ""
) -> T:
    """An object of the dataclass `kind`, whose fields the dictionary `stored` has.

    ranges: field -> the least and the most of its numbers, where it is not the usual range
    part: in which the fields are, for the error: "unet"
    Raises ValueError, to be read after a file's name, for a name that is no field, an absent field
    that has no default or is a dataclass itself, and a value of another type or out of range.
    """
    where, types = f" in its {part}" if part else "", get_type_hints(kind)
    if not isinstance(stored, Mapping):
        raise ValueError(f"has {shorten(stored)}{where}, which should be names with values")
    if unknown := [name for name in stored if name not in types]:
        said = f"has the setting {shorten(unknown[0])}{where}"
        raise ValueError(f"{said}, which is unknown here: a newer minisd may know it")
    needed = (
        one.name for one in fields(cast(Any, kind)) if one.default is one.default_factory is MISSING
    )
    parts = (name for name, one in types.items() if is_dataclass(one))
    if lacks := [name for name in (*needed, *parts) if name not in stored]:
        raise ValueError(f"lacks the setting {lacks[0]!r}{where}: get another copy")
    values = {}
    for name, value in stored.items():
        if is_dataclass(types[name]):
            values[name] = build_dataclass(types[name], value, ranges, name)
        else:
            values[name] = tuple(value) if isinstance(value, list) else value
            check_value(name, values[name], types[name], ranges.get(name), where)
    return kind(**values)


def check_value(
    name: str, value: object, kind: object, limits: Range | None = None, where: str = ""
) -> None:
    """Raises ValueError, naming the setting, for a value of another type or out of its range.

    kind: int, float, bool, str, dict, tuple, tuple[one of them, ...], a Literal, or one of several
    limits: the least and the most of its numbers. None: the usual range
    """
    if not is_of(kind, value, limits):
        said = f"has {name} = {shorten(value)}{where}, a setting of a wrong kind"
        raise ValueError(f"{said}: it should be {describe_kind(kind, limits)}")


def is_of(kind: object, value: object, limits: Range | None = None) -> bool:
    """Whether a value is of a type. 1 is a float, too; true is no number, and [] no numbers."""
    inner = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return any(is_of(one, value, limits) for one in inner)
    if get_origin(kind) is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if kind is tuple or get_origin(kind) is tuple:
        if not isinstance(value, list | tuple) or len(value) > MOST_ITEMS or not inner:
            return isinstance(value, list | tuple) and not inner
        needed = inner[0] in (int, float)  # a network without any sizes
        return len(value) >= needed and all(is_of(inner[0], one, limits) for one in value)
    if kind in (int, float):
        least, most = limits or USUAL_RANGE[kind]
        return type(value) in (int, kind) and least <= value <= most  # never true of NaN
    return isinstance(value, kind)


def describe_kind(kind: object, limits: Range | None = None) -> str:
    """
    >>> describe_kind(tuple[int, ...] | None)
    'a list in which each value is an integer from 1 to 1,000,000, or null'
    """
    inner = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return ", or ".join(describe_kind(one, limits) for one in inner)
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, inner))
    if get_origin(kind) is tuple:
        return f"a list in which each value is {describe_kind(inner[0], limits)}"
    if kind in (int, float):
        least, most = limits or USUAL_RANGE[kind]
        return f"{'an integer' if kind is int else 'a number'} from {least:,} to {most:,}"
    return KIND_NAMES[kind]


KIND_NAMES = {bool: "true or false", str: "a text", dict: "names with values", tuple: "a list"}
KIND_NAMES[NoneType] = "null"
