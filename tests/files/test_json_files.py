"""JSON and .yaml files from strangers: bounded in size, depth and time, refused in one sentence."""

import json
import os
import time
from dataclasses import dataclass
from typing import Literal

import pytest

from minisd.checkpoints.yaml_files import read_yaml
from minisd.config import ModelConfig
from minisd.files.json_files import (
    DEEPEST,
    LARGEST,
    build_dataclass,
    check_value,
    parse_json,
    read_json,
    shorten,
)


def refusal(call, *given) -> str:
    before = time.process_time()
    with pytest.raises(ValueError) as told:
        call(*given)
    assert type(told.value) is ValueError and "\n" not in str(told.value)
    assert time.process_time() - before < 5
    return str(told.value)


# ---- JSON --------------------------------------------------------------------------------------

TEXTS = {
    "": "is not valid JSON (see line 1, column 1): fetch it again",
    '{"a": 1,\n b}': "is not valid JSON (see line 2, column 2)",
    '{"a": 1, "b": 2, "a": 3}': "holds the name 'a' twice: delete the wrong one",
    "[NaN]": "has an invalid number, 'NaN'",
    "[" + "9" * 10**6 + "]": "has an invalid number, '99999",
    "[" + "1" * 5000 + ".5]": "has an invalid number, '11111",
    "[" * 10**6: "more than 30 levels",
    "[" * 32 + "]" * 32: "more than 30 levels",
    '{"a":' * 500 + "1" + "}" * 500: "more than 30 levels",
    r'["\ud800"]': "half a character",
    r'{"\udfff": 1}': "half a character",
    b"\xff\xfe[\0]\0": "is not UTF-8 text",
    "1" * (LARGEST + 1): "has more than 10,000,000 bytes",
    "{" + ",".join(f'"{i % 99999}":1' for i in range(10**5)) + "}": "the name '0' twice",
}


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: str(text[:12]))
def test_what_is_no_good_json_is_refused_in_our_words(text):
    assert TEXTS[text] in refusal(parse_json, text)


def test_good_json_is_read_as_python_reads_it():
    deepest = "[" * DEEPEST + "]" * DEEPEST
    for text in (
        '{"a": [1, 2.5, true, null, "\\ud83d\\ude00é"]}',
        deepest,
        "[-Infinity, 1e999]",
        "1" * 99,
    ):
        assert parse_json(text) == json.loads(text)
    assert parse_json(b"\xef\xbb\xbf{}") == parse_json("\ufeff{}") == {}


def test_only_regular_files_with_names_and_values_are_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}', encoding="utf-8")
    assert read_json(path) == {"a": 1}
    path.write_text("[]", encoding="utf-8")
    assert f"{path} is not a JSON object" in refusal(read_json, path)
    assert f"{tmp_path} is a folder, a pipe or a device" in refusal(read_json, tmp_path)
    assert "gone.json cannot be read (No such" in refusal(read_json, tmp_path / "gone.json")
    with open(path, "wb") as file:
        file.truncate(10**11)  # takes no room on the disk
    assert "has more than 10,000,000 bytes" in refusal(read_json, path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    assert "a pipe or a device" in refusal(read_json, tmp_path / "a.json")


# ---- what errors quote -------------------------------------------------------------------------


def test_what_an_error_quotes_is_short_and_on_one_line():
    assert shorten([1, "a\n\x1b[2J"]) == r"[1, 'a\n\x1b[2J']"
    for value in ("x" * 10**7, [[1] * 10**6] * 99, {"x" * 10**6: 1}, 10**10**5, "\ud800" * 999):
        assert len(shorten(value)) <= 80 and shorten(value).isprintable()


# ---- dataclasses -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inner:
    size: int
    rate: float = 0.5
    levels: tuple[int, ...] = (1,)
    order: Literal["rgb", "bgr"] = "rgb"
    width: int | None = None
    on: bool = False


@dataclass(frozen=True)
class Outer:
    inner: Inner
    name: str = "x"


def test_a_dictionary_becomes_the_dataclass():
    stored = {"inner": {"size": 3, "rate": 1, "levels": [1, 2], "width": None}, "name": "y"}
    assert build_dataclass(Outer, stored) == Outer(Inner(3, 1, (1, 2)), "y")


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        (
            {"size": 1.0},
            "has size = 1.0 in the inner settings, a setting of the wrong type: it should be an",
        ),
        ({"size": True}, "has size = True"),
        ({"size": 0}, "an integer from 1 to 9"),
        ({"size": 10}, "has size = 10"),
        ({"size": 10**99}, "has size = 1000"),
        ({"size": None}, "has size = None"),
        ({"size": 1, "rate": float("nan")}, "has rate = nan"),
        ({"size": 1, "rate": float("inf")}, "has rate = inf"),
        ({"size": 1, "rate": 10**7}, "a number from -1,000,000 to 1,000,000"),
        ({"size": 1, "rate": "1"}, "has rate = '1'"),
        ({"size": 1, "levels": []}, "has levels = ()"),
        ({"size": 1, "levels": 5}, "has levels = 5"),
        ({"size": 1, "levels": [1, [2]]}, "a list in which each value is an integer"),
        ({"size": 1, "levels": [1] * 100_001}, "has levels = (1, 1, 1"),
        ({"size": 1, "order": "grb"}, "it should be 'rgb' or 'bgr'"),
        ({"size": 1, "order": ["rgb"]}, "has order = ('rgb',)"),
        ({"size": 1, "width": "x"}, "an integer from 1 to 1,000,000, or null"),
        ({"size": 1, "on": 1}, "it should be true or false"),
        (
            {"size": 1, "colour": 1},
            "has the unknown setting 'colour' in the inner settings",
        ),
        ({}, "lacks the setting 'size' in the inner settings"),
        ([], "has [] in the inner settings, but this should be names with values"),
    ],
)
def test_a_wrong_value_is_refused_by_name(stored, says):
    assert says in refusal(build_dataclass, Outer, {"inner": stored}, {"size": (1, 9)})


def test_an_absent_part_is_not_taken_for_the_usual_one():
    assert "lacks the setting 'text'" in refusal(build_dataclass, ModelConfig, {})


def test_a_type_may_be_one_of_several():
    check_value("merges", ["a b", ["a", "b"]], tuple[str | tuple[str, ...], ...])
    assert "has merges = [1]" in refusal(
        check_value, "merges", [1], tuple[str | tuple[str, ...], ...]
    )


# ---- .yaml -------------------------------------------------------------------------------------

LAUGHS = "a: &a [x]\n" + "\n".join(
    f"{b}: &{b} [*{a}, *{a}]" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
YAMLS = {
    "laughs": LAUGHS,
    "deep": "[" * 50_000,
    "deep blocks": "".join("  " * n + "a:\n" for n in range(200)),
    "large": "a: 1\n" * 50_000,
    "not a number": "a: .nan",
    "huge": "a: 0x" + "f" * 9000,
    "an impossible date": "a: 2024-99-99",
    "code": "a: !!python/object/apply:os.system [ls]",
    "a list as a name": "? [a]\n: 1",
    "cut off": "a: [",
    "no text": "\0",
    "base 60": "a: 1" + ":59" * 5000 + ".5",
}


@pytest.mark.parametrize("name", YAMLS)
def test_a_yaml_that_asks_for_much_is_refused(tmp_path, name):
    (tmp_path / "a.yaml").write_text(YAMLS[name], encoding="utf-8")
    assert "lies next to a.yaml, which is not valid YAML (" in refusal(
        read_yaml, tmp_path / "a.yaml"
    )


def test_a_good_yaml_is_read(tmp_path):
    text = "\ufeffmodel:\n  params: {linear_start: 0.00085, x: [1, null, yes]}  # a note\n"
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    params = {"linear_start": 0.00085, "x": [1, None, True]}
    assert read_yaml(tmp_path / "a.yaml") == {"model": {"params": params}}
