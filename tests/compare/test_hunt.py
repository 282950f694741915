"""The hunt of lesson 17 and docs/compare.md: a port with a bug, which `minisd compare` finds."""

import re
import sys
from pathlib import Path

import pytest
import torch

import minisd
from docs.make import notebooks
from minisd.cli import main
from minisd.teaching import plot
from minisd.trace import named_modules, trace
from tests.tools.run_docs_commands import apply_diff

PAGE = (Path(__file__).parents[2] / "docs" / "compare.md").read_text(encoding="utf-8")
NUMBERS = re.compile(r"\d\.\d+(e[+-]\d+)?|\b\de[+-]\d+")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    """The names that the cells of the hunt define. They run with one step."""
    (path,) = notebooks.select_paths(["17"])
    names = {"torch": torch, "minisd": minisd, "plot": plot, "Path": Path, "trace": trace}
    names |= {"mini": minisd.load("mini"), "prompts": ["a cat", "a red apple"]}
    names |= {"named_modules": named_modules, "steps": 1, "folder": tmp_path_factory.mktemp("hunt")}
    before = set(sys.modules)
    for cell in notebooks.read(path).cells:
        if any(tag.startswith("hunt-") for tag in cell.metadata.get("tags", [])):
            exec(cell.source, names)
    yield names
    for name in set(sys.modules) - before & {"port", "second", "attempt"}:
        del sys.modules[name]


def test_the_page_and_the_lesson_hunt_in_the_same_port(lesson):
    (port,) = blocks("python")
    assert port == f"# port.py\n{lesson['PORT']}"


def test_the_page_prints_what_the_commands_print(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("port.py").write_text(blocks("python")[0], encoding="utf-8")
    first, second = blocks("text")
    assert main(["compare", "mini", "port.py:attention"]) == 1
    printed = NUMBERS.sub("#", capsys.readouterr().out).splitlines()
    assert set(NUMBERS.sub("#", first).splitlines()) - set(printed) == set()
    apply_diff(blocks("diff")[0], Path("port.py"))
    assert main(["compare", "mini", "port.py:attention"]) == 0
    assert second in capsys.readouterr().out


def test_the_lesson_finds_the_bug_and_its_repair_is_equal(lesson):
    buggy = lesson["port_file"].with_name("buggy.py")
    buggy.write_text(lesson["PORT"], encoding="utf-8")
    port = lesson["run_file"](buggy)
    report = lesson["compare"](lesson["block"], port.attention(lesson["block"]), lesson["given"])
    assert report.first.theirs == "mixer" and "root of the width of all heads" in report.cause
    assert lesson["report"].is_equal  # of the repaired port


@pytest.mark.parametrize("number", range(8))
def test_each_bug_of_the_exercise_is_found_and_its_repair_passes(lesson, number):
    right, wrong = lesson["BUGS"][number]
    assert len(lesson["BUGS"]) == 8
    text = lesson["port_file"].read_text(encoding="utf-8")
    assert text.count(right) == 1
    lesson["second_file"].write_text(text.replace(right, wrong), encoding="utf-8")
    block, second = lesson["block"], lesson["run_file"](lesson["second_file"])
    report = lesson["compare"](block, second.attention(block), lesson["given"])
    _, theirs = report.sources[report.first.name]
    kind = re.findall(r"^class (\w+)", text[: text.index(right)], flags=re.MULTILINE)[-1]
    assert f"{kind}, " in theirs and report.cause
    verdict = lesson["verdict"]
    assert verdict(wrong, right).startswith("is right.")
    assert verdict(wrong, wrong).startswith("is not right yet.")
    assert verdict("absent", right).startswith("is not right yet.")
    assert verdict(wrong, "(").startswith("stopped with SyntaxError")
    assert verdict(..., ...).startswith("waits")
