"""Every command on the pages for newcomers is run, or it is listed with a reason."""

import re
import shlex
from pathlib import Path

import pytest

from minisd.cli import build_parser
from tests.tools import run_docs_commands
from tests.tools.run_docs_commands import LISTED, LISTED_PYTHON, PAGES, commands, why_not

ROOT = Path(__file__).parents[2]
ALL = {name: commands((ROOT / name).read_text(encoding="utf-8")) for name in PAGES}


def test_commands_are_found_wherever_they_stand():
    page = (
        "Run `minisd doctor`, or\n`pip install\nx`; not `--lora FILE`.\n\n    minisd a && pip b\n"
    )
    page += "\n```bash\nminisd c; minisd d\nls\n```\n\n```python\nimport minisd\n```\n"
    page += "```diff\n-old\n+new\n```\n| Linux | `. .venv/bin/activate` | `minisd.load` |\n"
    found = ["minisd doctor", "pip install x", "minisd a", "pip b", "minisd c", "minisd d"]
    blocks = ["python\nimport minisd\n", "diff\n-old\n+new\n"]
    assert commands(page) == [*found, *blocks, ". .venv/bin/activate"]


@pytest.mark.parametrize("name", PAGES)
def test_every_command_is_run_or_listed(name):
    """A command that is run is Python, a diff, or a minisd command that the parser accepts."""
    run = [one for one in ALL[name] if not why_not(one)]
    least = {"README.md": 3, "docs/setup.md": 2, "docs/steering.md": 40, "docs/compare.md": 8}
    assert len(run) >= least[name]
    for command in run:
        if not command.startswith(("python\n", "diff\n")):
            words = shlex.split(command)
            assert words[0] == "minisd", f"{command}: run it, or list it with a reason"
            _, extra = build_parser().parse_known_args(words[1:])
            assert extra == []


def test_the_lists_name_nothing_that_is_gone():
    every = [command for page in ALL.values() for command in page]
    assert [fits for fits in LISTED if not any(re.fullmatch(fits, one) for one in every)] == []
    assert [words for words in LISTED_PYTHON if not any(words in one for one in every)] == []


@pytest.mark.parametrize("name", PAGES)
def test_a_command_names_no_file_of_the_repository(name):
    for command in ALL[name]:
        if not why_not(command):
            assert "weights/" not in command and "docs/" not in command, command


def test_weights_go_into_a_wheel_and_stay_out_of_an_editable_install():
    """Hatch applies force-include to both. run_docs_commands.py checks what pip installs."""
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert "force-include" not in settings
    assert 'weights = "minisd/weights"' in settings
    assert run_docs_commands.check_what_is_installed
