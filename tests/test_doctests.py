"""The examples in docstrings (>>> …) show what the code really does."""

import doctest
import importlib
import pkgutil

import pytest

import minisd

MODULES = [module.name for module in pkgutil.walk_packages(minisd.__path__, "minisd.")]
MODULES.remove("minisd.__main__")  # it is the command itself


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, extraglobs={"torch": importlib.import_module("torch")})
    assert not failed, f"{name}: run `python -m doctest` to see the {failed} wrong examples"


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    modules = map(importlib.import_module, MODULES)
    tests = [test for module in modules for test in finder.find(module) if test.examples]
    assert len(tests) >= 15
