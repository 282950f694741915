"""What docs/security.md says of limits is what the code does."""

import re
from importlib import import_module
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "security.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| .+ \| ([\d,]+)[ a-z]* \| `(minisd[\w.]+)\.([A-Z_]+)` \|$", re.MULTILINE)
LIMITS = ROW.findall(PAGE)


@pytest.mark.parametrize("number, module, name", LIMITS, ids=[limit[2] for limit in LIMITS])
def test_a_limit_is_the_constant(number, module, name):
    assert getattr(import_module(module), name) == int(number.replace(",", ""))


def test_the_table_is_found():
    assert len(LIMITS) >= 10


def test_the_commands_of_the_page_exist():
    tests = Path(__file__).parent
    for path in re.findall(r"`(?:pytest|python) (tests/[\w./]+)", PAGE):
        assert (tests.parent / path).exists(), path
    assert (tests / "fuzz" / "__main__.py").exists()


def test_the_time_and_memory_are_those_of_the_harness():
    from tests.fuzz.judge import ROOM, SECONDS

    text = " ".join(PAGE.split())
    assert f"within {SECONDS:g} seconds" in text and ROOM == 10**9 and "1 GB of memory" in text
