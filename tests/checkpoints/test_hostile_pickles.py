"""Pickles that try to run code, through every reader that meets one: none does."""

import os
from pathlib import Path

import pytest

from tests.fuzz import watch
from tests.fuzz.case import Case, Printed, Reader
from tests.fuzz.hostile import ATTACKS, CANARY, bare, forms
from tests.fuzz.judge import CODE, LOADED, REFUSED, Limits, judge
from tests.fuzz.readers import READERS
from tests.fuzz.run import read_good

FORMS = list(forms(None))
# reader -> the file of its folder that is a pickle
PICKLED = {
    "zip pickle": "a.ckpt",
    "textual inversion": "my-cat.pt",
    "hypernetwork": "h.pt",
    "LoRA": "k.pt",
    "ControlNet": "c.pth",
    "run folder": "run/state.pt",
    "info": "a.ckpt",
}


class CanaryError(Exception):
    """The pickle's code ran."""


def guarded(reader: Reader) -> Reader:
    """The same reader, run in the case's folder; a canary there is told."""

    def read(path: Path) -> object:
        folder = os.getcwd()
        os.chdir(path.parent)
        try:
            result = reader.read(path)
            return result if isinstance(result, Printed) else None
        finally:
            os.chdir(folder)
            if path.with_name(CANARY).exists():
                raise CanaryError

    return Reader(reader.name, reader.good, reader.cases, read, named=False)


@pytest.fixture(scope="module")
def guarded_readers():
    for name in PICKLED:
        read_good(READERS[name])
    return {name: guarded(READERS[name]) for name in PICKLED}


def case_of(name: str, content: bytes) -> Case:
    """The reader's own good case with the attack in place of its pickle."""
    file = PICKLED[name]
    case = next(case for case in READERS[name].good() if file in case.files)
    return Case(case.files | {file: content}, case.target)


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_reader_runs_code(attack, guarded_readers):
    contents = list(forms(ATTACKS[attack]).values())
    for at, (name, reader) in enumerate(guarded_readers.items()):
        # the first reader gets every form, the others one each, by turns
        for content in contents if at == 0 else [contents[(at + len(attack)) % len(contents)]]:
            verdict = judge(reader, case_of(name, content))
            assert verdict.kind in (LOADED, REFUSED), f"{name}: {verdict}"


def test_there_are_enough_attacks():
    assert len(ATTACKS) >= 110 and len(PICKLED) >= 5


@pytest.mark.parametrize(
    "attack", ["os.system", "builtins.eval", "partial", "INST", "STACK_GLOBAL"]
)
def test_an_unguarded_reader_would_have_run_them(attack):
    """The attacks work: Python's own pickle runs them, and the watch sees it."""
    import pickle

    reader = Reader("unguarded", list, list, lambda path: pickle.loads(path.read_bytes()))
    verdict = judge(guarded(reader), Case({"a.pt": bare(ATTACKS[attack])}, "a.pt"))
    assert verdict.kind == CODE


def test_the_watch_lets_its_folder_be_written(tmp_path):
    def write(path: Path) -> None:
        path.with_name("new").write_bytes(b"x")

    reader = Reader("writer", list, list, write)
    assert judge(reader, Case({"a": b""}, "a"), Limits()).kind == LOADED
    outside = Reader("writer", list, list, lambda path: (tmp_path / "new").write_bytes(b"x"))
    assert judge(outside, Case({"a": b""}, "a"), Limits()).kind == CODE
    assert not watch._running["thread"]
