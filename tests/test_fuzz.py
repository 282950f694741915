"""The short part of the fuzz run: every reader, the same cases each time, no fault.

`python -m tests.fuzz --cases 50000` is the long one. What fails here is saved, to be read again.
"""

import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from minisd.tokenizer import Tokenizer
from tests.fuzz import judge as judging
from tests.fuzz import watch
from tests.fuzz.case import Case, Printed, Reader
from tests.fuzz.edits import broken
from tests.fuzz.judge import (
    CODE,
    HANG,
    LOADED,
    MEMORY,
    REFUSED,
    TRACEBACK,
    USUAL,
    WORDS,
    WRONG,
    Limits,
)
from tests.fuzz.readers import READERS
from tests.fuzz.readers.models import kept_clip
from tests.fuzz.run import keep, kept, read_good, run_cases

CASES = 25  # for a share of 1
FEW = 6
SEED = 18


@pytest.fixture(autouse=True, scope="module")
def one_vocabulary():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tokenizer, "clip", staticmethod(kept_clip))
        yield


def first_fault(reader: Reader, folder: Path, cases: int, limits: Limits = USUAL) -> str | None:
    """The first fault of a short run, in words, and where it is saved; None: there is none."""
    faults = []

    def record(case: Case, verdict: judging.Verdict) -> None:
        if verdict.is_fault and not faults:
            keep(folder / "fault", reader, case, verdict, SEED)
            faults.append(f"{verdict}: python -m tests.fuzz --replay {folder / 'fault'}")

    run_cases(reader, cases, SEED, record, limits)
    return faults[0] if faults else None


@pytest.mark.parametrize("name", READERS)
def test_no_broken_input_is_a_fault(name, tmp_path):
    reader = READERS[name]
    read_good(reader)
    fault = first_fault(reader, tmp_path, round(CASES * reader.share))
    assert fault is None, fault


# ---- the harness notices ----------------------------------------------------------------------


def planted(read, **more) -> Reader:
    """A reader with a fault, which some input meets: it reads tokenizer files."""
    good = READERS["tokenizer file"].good

    def reading(path: Path) -> object:
        content = path.read_bytes()
        try:
            return READERS["tokenizer file"].read(path)
        except ValueError:
            return read(path, content)

    return Reader("planted", good, lambda: broken(good()), reading, **more)


def unnamed(path: Path, content: bytes) -> None:
    raise KeyError("merges")


def slow(path: Path, content: bytes) -> None:
    time.sleep(3)


def run_code(path: Path, content: bytes) -> None:
    exec("print()")


def run_program(path: Path, content: bytes) -> None:
    subprocess.run(["true"], check=False)


def take_memory(path: Path, content: bytes) -> None:
    np.ones(4 * 10**9, np.uint8)


def write_elsewhere(path: Path, content: bytes) -> None:
    Path(__file__).with_name("written-by-a-reader").write_bytes(b"")


def borrowed_words(path: Path, content: bytes) -> None:
    int("no number")


FAULTS = {
    TRACEBACK: [unnamed],
    HANG: [slow],
    CODE: [run_code, run_program, write_elsewhere],
    MEMORY: [take_memory] if watch.resource else [],  # Windows does not tell
    WORDS: [borrowed_words],
}


@pytest.mark.parametrize(
    "kind, read", [(k, read) for k, all_of in FAULTS.items() for read in all_of]
)
def test_a_planted_fault_fails_the_short_run(kind, read, tmp_path):
    reader = planted(read)
    fault = first_fault(reader, tmp_path, FEW, Limits(seconds=0.1))
    assert fault is not None and f"kind={kind!r}" in fault
    name, case = kept(tmp_path / "fault")
    verdict = judging.judge(reader, case, Limits(seconds=0.1))
    assert (name, verdict.kind) == ("planted", kind)
    assert not Path(__file__).with_name("written-by-a-reader").exists()


def test_a_wrong_load_is_a_fault(tmp_path):
    reader = planted(lambda path, content: None, check=lambda path, result: "other numbers")
    assert f"kind={WRONG!r}" in first_fault(reader, tmp_path, FEW)


@pytest.mark.parametrize("plant", [unnamed, slow, run_program])
def test_a_fault_in_minisd_itself_fails_the_short_run(plant, monkeypatch, tmp_path):
    """Not in a reader of ours, but below: where minisd reads the header of a file."""
    from minisd.checkpoints import read

    monkeypatch.setattr(read, "read_header", lambda path: plant(path, b""))
    assert first_fault(READERS["safetensors"], tmp_path, FEW, Limits(seconds=0.1)) is not None


COMMANDS = {
    (0, "all is well\n", ""): LOADED,
    (2, "", "minisd info: a.pt is damaged: fetch it again.\n"): REFUSED,
    (2, "", "minisd: the picture is resized.\nminisd info: a.pt is damaged.\n"): REFUSED,
    (2, "", "minisd info: a.pt is damaged\nor so.\n"): WORDS,
    (2, "", "minisd info: \x1b[2J is damaged.\n"): WORDS,
    (0, "name: \x07\n", ""): WORDS,
    (2, "", "minisd info: [Errno 22] Invalid argument\n"): WORDS,
    (1, "", "minisd info: something.\n"): TRACEBACK,
    (2, "", ""): TRACEBACK,
}


@pytest.mark.parametrize("printed", COMMANDS)
def test_a_command_answers_in_one_clean_line(printed):
    assert judging.of_command(Printed(*printed)).kind == COMMANDS[printed]


def test_the_same_seed_gives_the_same_cases():
    runs = []
    for _ in range(2):
        runs.append([])
        run_cases(READERS["web UI's text"], 20, SEED, lambda case, verdict: runs[-1].append(case))
    assert runs[0] == runs[1] and len({str(case) for case in runs[0]}) > 10


def test_broken_cases_differ_from_the_good_ones():
    """Most of them, for every reader: a run over unbroken files would show nothing."""
    for name, reader in READERS.items():
        cases = []
        quick = Reader(name, reader.good, reader.cases, lambda path: None)
        run_cases(quick, 12, SEED, lambda case, verdict, to=cases: to.append(case))
        assert sum(case not in reader.good() for case in cases) >= 6, name


def test_the_readers_are_the_promised_ones():
    assert len(READERS) >= 30
    assert os.path.exists(Path(__file__).parents[1] / "docs" / "security.md")
