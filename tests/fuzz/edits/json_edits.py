"""Edits of JSON: values of other kinds, keys twice or gone, depth, and JSON inside strings."""

import json
from collections.abc import Callable

from hypothesis import strategies as st

from tests.fuzz.edits.byte_edits import edit_bytes
from tests.fuzz.edits.text_edits import nasty


class Raw(str):
    """Text that goes into the file as it stands."""


class Pairs(list):
    """An object: its keys with their values, maybe some of them twice."""


NUMBERS = [0, 1, -1, 2, 3, 7, 0.5, -0.0, 64, 1000, 10**6, 2**31, 2**32, 2**53 + 1, 2**63, 10**30]
OTHERS = [
    *(None, True, False, "", [], Pairs(), [[]], [None], [1, "a"], Pairs([("a", 1)])),
    *map(
        Raw, ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1E400", "9" * 5000, "0.1e-9999")
    ),
    *(Raw("[" * deep + "]" * deep) for deep in (20, 500, 2000, 100_000)),
    *(Raw('{"a":' * deep + "1" + "}" * deep) for deep in (500, 100_000)),
    *(
        Raw(broken)
        for broken in ("", "{", "}", '"', "nul", "[1,]", '"\\ud800"', '"\\x"', "01", "'a'")
    ),
    *([0] * 1000, list(range(5000)), ["a"] * 2000, "a" * 50_000, [[0] * 10] * 10),
]


def parse(text: str) -> object:
    return json.loads(text, object_pairs_hook=Pairs)


def write(value: object) -> str:
    """JSON, in which Raw stands as it is and keys may be twice."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{write(key)}: {write(one)}" for key, one in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(write, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def containers(value: object) -> list:
    """Every object and list that is not empty, from the outermost in."""
    found = []
    waiting = [value]
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, list) and one:
            found.append(one)
            waiting += [each[1] if isinstance(one, Pairs) else each for each in one]
    return found


def value_near(draw: Callable, old: object) -> object:
    """Another value, sometimes one that is not far from the old."""
    if type(old) in (int, float) and draw(st.booleans()):
        return draw(
            st.sampled_from((old + 1, old - 1, -old, old * 2, old * 1000, old / 2, str(old)))
        )
    if isinstance(old, str) and (inner := edit_inside(draw, old)) is not None:
        return inner
    if isinstance(old, list) and old and draw(st.booleans()):
        return draw(st.sampled_from((old * 2, old[:-1], old + old[:1], [old], old[0])))
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return draw(st.sampled_from(NUMBERS))
    if kind == 1:
        return nasty(draw)
    if kind == 2:
        return draw(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False)))
    return draw(st.sampled_from(OTHERS))


def edit_inside(draw: Callable, text: str) -> str | None:
    """A string that is itself JSON, edited; None for others, and sometimes for it."""
    if not text.lstrip().startswith(("{", "[")) or draw(st.integers(0, 3)) == 0:
        return None
    try:
        return edit_json(draw, text)
    except ValueError:
        return None


def edit_value(draw: Callable, value: object) -> object:
    """One place of it changed. The value itself may be changed, too."""
    places = containers(value)
    if not places or draw(st.integers(0, 30)) == 0:
        return value_near(draw, value)
    outer = draw(st.booleans())
    place = places[draw(st.integers(0, min(len(places) - 1, 12 if outer else len(places))))]
    at, kind = draw(st.integers(0, len(place) - 1)), draw(st.integers(0, 9))
    if isinstance(place, Pairs):
        key, old = place[at]
        if kind == 0:
            del place[at]
        elif kind == 1:
            place.insert(draw(st.integers(0, len(place))), (key, value_near(draw, old)))
        elif kind == 2:
            place[at] = (nasty(draw), old)
        elif kind == 3:
            place.append((nasty(draw), draw(st.sampled_from(NUMBERS))))
        elif kind == 4:
            other = draw(st.integers(0, len(place) - 1))
            place[at] = (key, place[other][1])
        else:
            place[at] = (key, value_near(draw, old))
    elif kind == 0:
        del place[at]
    elif kind == 1:
        place.insert(at, place[at])
    else:
        place[at] = value_near(draw, place[at])
    return value


def edit_json(draw: Callable, text: str) -> str:
    """Raises ValueError if the text is no JSON."""
    return write(edit_value(draw, parse(text)))


def edit(draw: Callable, content: bytes) -> bytes:
    try:
        edited = edit_json(draw, content.decode("utf-8"))
    except (ValueError, RecursionError):  # broken already
        return edit_bytes(draw, content)
    return edited.encode("utf-8", errors="surrogatepass")
