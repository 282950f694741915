"""The links that open a lesson in Colab and Binder come from one address."""

import ast

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from docs.make import badges, notebooks

ADDRESS = "https://github.com/somebody/minisd"


def test_the_address_stands_in_pyproject():
    assert badges.repository(f'[project.urls]\nRepository = "{ADDRESS}.git"\n') == ADDRESS
    with pytest.raises(ValueError, match=r"has no address of the repository. Add \[project.urls\]"):
        badges.repository("[project]\n")
    with pytest.raises(ValueError, match="Colab opens no other"):
        badges.repository('Repository = "https://example.org/somebody/minisd"')


def test_a_lesson_gets_its_badges_once():
    lesson = new_notebook(
        cells=[new_markdown_cell("# 07 · Attention: who looks?"), new_code_cell("1")]
    )
    once = badges.with_badges(lesson, "https://github.com/other/name", "07_attention.ipynb")
    twice = badges.with_badges(once, ADDRESS, "07_attention.ipynb")
    title, install, code = twice.cells
    assert code.source == "1" and install.metadata.tags == ["install"]
    ast.parse(install.source)  # plain Python
    assert f"git clone --depth 1 {ADDRESS} minisd" in install.source
    links = title.source.split("\n\n")[1]
    assert links == (
        "[Open in Colab](https://colab.research.google.com/github/somebody/minisd/blob/main/"
        "notebooks/07_attention.ipynb) · [Open in Binder](https://mybinder.org/v2/gh/somebody/minisd/"
        "HEAD?labpath=notebooks%2F07_attention.ipynb)"
    )
    assert notebooks.blemishes(twice) == []


def test_setup_tells_to_clone_this_address():
    before = badges.SETUP.read_text(encoding="utf-8")
    after = badges.with_address(before, ADDRESS)
    assert f"git clone {ADDRESS} minisd && cd minisd" in after
    assert f"`!git clone --depth 1 {ADDRESS} minisd && pip" in after
    assert badges.with_address(after, ADDRESS) == after
