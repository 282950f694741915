"""weights/README.md: every file that is shipped has its section, with the right checksum."""

import re

import pytest

from minisd.config import WEIGHTS
from minisd.files.sha256 import file_sha256

PAGE = (WEIGHTS / "README.md").read_text(encoding="utf-8")
FILES = sorted(path for path in WEIGHTS.iterdir() if path.is_file() and path.name != "README.md")
SECTIONS = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_has_its_section_and_checksum(path):
    assert path.name in SECTIONS, f"weights/README.md says nothing of {path.name}"
    section = SECTIONS[path.name]
    assert file_sha256(path) in section
    assert f"{path.stat().st_size / 1e6:.1f} MB" in section or f"{path.stat().st_size:,}" in section
    assert re.search(r"MIT|Apache|CC-BY", section), "its licence"


def test_every_section_has_its_file():
    assert set(SECTIONS) == {path.name for path in FILES}


def test_all_weights_together_are_small():
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) <= 60e6
