"""Read JSON files from strangers safely, and build dataclasses from their content.

No file is trusted. A file may be huge, may nest values a million levels deep, may hold a name
twice, or may be a device instead of a file. Every problem becomes a ValueError. Most messages begin
with a verb ("holds …"). The caller puts the file's name before such a message.
"""

import json
import re
import reprlib
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from itertools import chain, islice
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

# Python needs about 50 bytes of memory for each byte of "[{},{},{}, …". So the largest allowed file
# costs at most 500 MB and two seconds. A tokenizer.json of CLIP has 4 MB. A shard index has less
# than 1 MB.
LARGEST = 10 * 10**6  # bytes
DEEPEST = 30  # levels of nested lists and dictionaries; a tokenizer.json has 6
LONGEST_NUMBER = 100  # characters; transformers writes 10**30 where it means "no limit"
MOST_ITEMS = 100_000  # the most items of a tuple, such as a schedule's betas
SHORTENED = 80  # an error message quotes at most this many characters of a value

T = TypeVar("T")
Range = tuple[float, float]  # the smallest and the largest allowed number
# The allowed range of integers (sizes and counts), and that of floats (rates and scales)
USUAL_RANGE = {int: (1, 10**6), float: (-(10**6), 10**6)}


# ---- reading -----------------------------------------------------------------------------------


def read_json(path: Path) -> dict:
    """Read a .json file that holds a JSON object (names with values).

    Raises ValueError if the file is missing, is not a regular file, is cut off, is too large or
    does not hold a JSON object.
    """
    try:
        content = parse_json(read_at_most(path, LARGEST))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): fetch it again.") from error
    except ValueError as error:
        raise ValueError(f"{path} {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object (names with values): fetch it again.")
    return content


def read_at_most(path: Path, most: int) -> bytes:
    """Read a whole regular file. (A pipe or a device might never end.)

    Raises ValueError if the path is not a regular file, or if the file has more than `most` bytes.
    The caller puts the path before the message.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("is a folder, a pipe or a device: give a file")
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"has more than {most:,} bytes, which is too many: fetch it again")
    return content


def parse_json(text: str | bytes, largest: int = LARGEST) -> object:
    """Parse a JSON text into dictionaries, lists, texts, numbers, booleans and None.

    largest: the largest allowed length of the text

    Raises ValueError if the text is not JSON, is too large or is nested too deeply. Also raises
    ValueError if the text holds a name twice, NaN, a very long number or half a character. (UTF-16
    writes some characters as a pair of numbers. Half a character is one number without the other.)
    The caller puts the file's name before the message.
    """
    if len(text) > largest:
        raise ValueError(f"has more than {largest:,} bytes of JSON: get another copy")
    try:
        text = text.decode() if isinstance(text, bytes) else text
        content = json.loads(
            text.removeprefix("\ufeff"),  # some Windows editors put this mark before the text
            object_pairs_hook=build_dictionary,
            parse_int=lambda digits: parse_number(int, digits),
            parse_float=lambda digits: parse_number(float, digits),
            parse_constant=lambda name: parse_number(float, name),
        )
    except UnicodeDecodeError as error:
        raise ValueError("is not UTF-8 text, but JSON must be UTF-8: get another copy") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"is not valid JSON (see {place}): fetch it again") from error
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error
    check_depth(content)
    if HALF_ESCAPED.search(text):
        check_half_characters(content)
    return content


HALF_CHARACTER = re.compile(r"[\ud800-\udfff]")  # half of a pair in UTF-16; a half alone is invalid
HALF_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")  # such a half in JSON. UTF-8 has no halves
TOO_DEEP = f"nests values more than {DEEPEST} levels deep: get another copy"


def build_dictionary(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Turn pairs of name and value into a dictionary. Raises ValueError if a name comes twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"holds the name {shorten(twice)} twice: delete the wrong one")
    return found


def parse_number(kind: type, digits: str) -> float:
    """Parse a number. Returns an int or a float: `kind` says which.

    Infinity is not valid JSON, but diffusers writes it ("lambda_min_clipped": -Infinity). So this
    function accepts Infinity. If the number is a setting, check_value() refuses Infinity later.

    Raises ValueError if the number is NaN, or has more digits than any setting needs.
    """
    if digits == "NaN" or len(digits) > LONGEST_NUMBER:
        raise ValueError(f"has an invalid number, {shorten(digits)}: get another copy")
    return kind(digits)


def check_depth(content: object) -> None:
    """Raise ValueError if values are nested too deeply."""
    if len(list(islice(levels(content), DEEPEST + 2))) > DEEPEST + 1:
        raise ValueError(TOO_DEEP)


def check_half_characters(content: object) -> None:
    """Raise ValueError if a text has half a character, which is one half of a pair in UTF-16."""
    for level in levels(content):
        texts = [one for one in level if isinstance(one, str)]
        texts += [name for one in level if isinstance(one, dict) for name in one]
        if any(map(HALF_CHARACTER.search, texts)):
            raise ValueError("has a text with half a character (\\ud800 …): get another copy")


def levels(content: object) -> Iterator[list]:
    """Yield the values by how deep they are nested: [content], then the values in it, and so on."""
    level = [content]
    while level:
        yield level
        dictionaries = [one.values() for one in level if isinstance(one, dict)]
        level = list(chain(*dictionaries, *(one for one in level if isinstance(one, list))))


# ---- what an error quotes ----------------------------------------------------------------------

SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxlong = SHORT.maxother = SHORTENED
SHORT.maxlist = SHORT.maxtuple = 8


def shorten(value: object) -> str:
    """The repr() of a value, shortened to one line of at most 80 characters.

    >>> shorten([1, "a\\n"]), len(shorten("x" * 10**6))
    ("[1, 'a\\\\n']", 80)
    """
    try:
        text = SHORT.repr(value)
    except ValueError:  # Python does not print a number of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= SHORTENED else f"{text[: SHORTENED - 1]}…"


# ---- checking a dictionary against a dataclass ------------------------------------------------


def build_dataclass(
    kind: type[T], stored: object, ranges: Mapping[str, Range] = {}, part: str = ""
) -> T:
    """Build an object of the dataclass `kind` from the dictionary `stored`.

    ranges: name of a field -> smallest and largest allowed number. All other fields have the range
        that USUAL_RANGE states for their type
    part: the part of the file from which `stored` comes, such as "unet". Messages quote this name

    Raises ValueError if a name is not a field, if a required field is missing, or if a value has
    the wrong type or is out of range. A field is required if it has no default, or if its type is
    a dataclass. The caller puts the file's name before the message.
    """
    where, types = f" in the {part} settings" if part else "", get_type_hints(kind)
    if not isinstance(stored, Mapping):
        raise ValueError(f"has {shorten(stored)}{where}, but this should be names with values")
    if unknown := [name for name in stored if name not in types]:
        found = f"has the unknown setting {shorten(unknown[0])}{where}"
        raise ValueError(f"{found}: a newer version of minisd may know it")
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
    """Raise ValueError if a value has the wrong type or is out of range.

    name: the name of the setting. The message quotes this name
    kind: the type: int, float, bool, str, dict, tuple, a Literal, a tuple of one of these types
        (tuple[int, ...]), or a union of these types
    limits: the smallest and the largest allowed number. None: the usual range
    where: a text that the message adds to say where the setting is, such as " in the unet settings"
    """
    if not has_type(kind, value, limits):
        found = f"has {name} = {shorten(value)}{where}, a setting of the wrong type"
        raise ValueError(f"{found}: it should be {describe_kind(kind, limits)}")


def has_type(kind: object, value: object, limits: Range | None = None) -> bool:
    """Whether a value has the type `kind`, and lies within the limits.

    An integer also counts as a float. True is not a number, and [] is not a list of numbers.
    """
    inner = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return any(has_type(one, value, limits) for one in inner)
    if get_origin(kind) is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if kind is tuple or get_origin(kind) is tuple:
        if not isinstance(value, list | tuple) or len(value) > MOST_ITEMS or not inner:
            return isinstance(value, list | tuple) and not inner
        needed = inner[0] in (int, float)  # a network needs at least one size
        return len(value) >= needed and all(has_type(inner[0], one, limits) for one in value)
    if kind in (int, float):
        least, most = limits or USUAL_RANGE[kind]
        return type(value) in (int, kind) and least <= value <= most  # false for NaN
    assert isinstance(kind, type)
    return isinstance(value, kind)


def describe_kind(kind: object, limits: Range | None = None) -> str:
    """Describe a type in words, for an error message.

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
