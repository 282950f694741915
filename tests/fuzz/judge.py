"""The verdict on one case: loaded, refused in one sentence, or a fault."""

import dis
import io
import os
import shutil
import sys
import tempfile
import traceback
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import minisd
from tests.fuzz.case import Case, Printed, Reader
from tests.fuzz.watch import TooSlow, Watch, forget_highest, watched

SECONDS = 5.0
ROOM = 10**9  # bytes beyond the input's own size
SLACK = 300 * 10**6  # of address space, which is taken in larger pieces than memory

LOADED, REFUSED = "loaded", "refused"
FAULTS = TRACEBACK, WORDS, HANG, MEMORY, CODE, WRONG, DIED = (
    *("traceback", "library's words", "hang", "over memory", "code run", "wrong load", "died"),
)
PACKAGE = Path(minisd.__file__).parent
OPERATION = {"RAISE_VARARGS", "RERAISE"}


@dataclass(frozen=True)
class Limits:
    """seconds: of a case    bytes: beyond the input's size    hard: a hang may end the process"""

    seconds: float = SECONDS
    bytes: int = ROOM
    hard: bool = False


USUAL = Limits()


@dataclass(frozen=True)
class Verdict:
    """kind: LOADED, REFUSED or one of FAULTS    why: what was seen    where: in minisd"""

    kind: str
    why: str = ""
    where: str = ""

    @property
    def is_fault(self) -> bool:
        return self.kind in FAULTS


def judge(reader: Reader, case: Case, limits: Limits = USUAL) -> Verdict:
    """Read the case in a folder of its own. What took too long or too much is read twice."""
    verdict = judge_once(reader, case, limits)
    if verdict.kind in (HANG, MEMORY):
        forget_highest()
        verdict = judge_once(reader, case, limits)
        forget_highest()
    return verdict


def judge_once(reader: Reader, case: Case, limits: Limits) -> Verdict:
    folder = Path(tempfile.mkdtemp(prefix="minisd-fuzz-"))
    try:
        return judge_in(folder, reader, case, limits)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def judge_in(folder: Path, reader: Reader, case: Case, limits: Limits) -> Verdict:
    target = case.write(folder)
    room = limits.bytes + SLACK + 3 * case.size  # mapped, copied, and what it was made of
    result, error = None, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with watched(folder, limits.seconds, room, limits.hard) as watch:
                result = reader.read(target)
        except (Exception, SystemExit, TooSlow) as caught:
            error = caught
        if fault := by_watch(watch, error, case, limits):
            return fault
        if isinstance(result, Printed):
            return of_command(result)
        if error is None:
            wrong = reader.check(target, result)
            return Verdict(WRONG, wrong) if wrong else Verdict(LOADED)
    return of_error(error, names_in(case) if reader.named else set())


def names_in(case: Case) -> set[str]:
    """The names of the case's files and folders."""
    return {part for name in (*case.files, case.target) for part in Path(name).parts}


def by_watch(
    watch: Watch, error: BaseException | None, case: Case, limits: Limits
) -> Verdict | None:
    where = place(error)
    if watch.asked:
        return Verdict(CODE, watch.asked[0], where)
    if isinstance(error, TooSlow) or watch.seconds > limits.seconds:
        return Verdict(HANG, f"{watch.seconds:.1f} s", where)
    if watch.bytes > limits.bytes + case.size or lacked_memory(error):
        asked = f"{watch.bytes / 1e6:.0f} MB" if watch.bytes > limits.bytes else f"{error!r:.150}"
        return Verdict(MEMORY, asked, where)
    return None


def lacked_memory(error: BaseException | None) -> bool:
    """Whether memory ran out on the way, even if a sentence was made of it."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        said = str(error)
        if isinstance(error, MemoryError) or "allocate" in said:
            return True
        error = error.__cause__ or error.__context__
    return False


# ---- errors ----------------------------------------------------------------------------------


def of_error(error: BaseException, names: set[str]) -> Verdict:
    """names: of files, one of which the message has to hold; empty: none"""
    said, where = f"{type(error).__name__}: {error}"[:300], place(error)
    if not isinstance(error, ValueError | OSError):
        return Verdict(TRACEBACK, said, where)
    message = str(error)
    if type(error) is not ValueError or not is_ours(error.__traceback__):
        return Verdict(WORDS, said, where)
    if not message.strip() or "\n\t" in message:  # torch's lists; a name may hold any letter
        return Verdict(WORDS, f"no sentence: {said}", where)
    if names and not any(name in message for name in names):
        return Verdict(WORDS, f"names no file: {said}", where)
    return Verdict(REFUSED, message)


def unclean(text: str) -> str | None:
    """What keeps a text from being one line of plain letters."""
    if not text.strip():
        return "says nothing"
    if len(text.splitlines()) > 1:
        return "several lines"
    odd = [letter for letter in text if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")]
    return f"control character {odd[0]!r}" if odd else None


def is_ours(trace: TracebackType | None) -> bool:
    """Whether a `raise` in minisd's own code made the error, and not a function that it called."""
    last = frames(trace)[-1]
    code, at = last.tb_frame.f_code, last.tb_lasti
    if not Path(code.co_filename).is_relative_to(PACKAGE):
        return False
    operations = {one.offset: one.opname for one in dis.get_instructions(code)}
    return operations.get(at) in OPERATION


def frames(trace: TracebackType | None) -> list[TracebackType]:
    found = []
    while trace is not None:
        found.append(trace)
        trace = trace.tb_next
    return found


def place(error: BaseException | None) -> str:
    """The innermost place in minisd that an error passed: "checkpoints/read.py:12 header"."""
    ours = [
        f"{Path(one.filename).relative_to(PACKAGE)}:{one.lineno} {one.name}"
        for one in traceback.extract_tb(error.__traceback__ if error else None)
        if Path(one.filename).is_relative_to(PACKAGE)
    ]
    return ours[-1] if ours else ""


# ---- commands --------------------------------------------------------------------------------


def of_command(printed: Printed) -> Verdict:
    """A command ends with 0, or with 2 and one sentence; warnings may stand before it."""
    lines = printed.err.splitlines()
    said = (lines[-1] if lines else "")[:300]
    for text in (printed.out, printed.err):
        for line in text.split("\n"):
            if line and (wrong := unclean(line.strip() or "-")):
                return Verdict(WORDS, f"{wrong} in {line[:200]!r}")
    if "too little memory" in printed.err:
        return Verdict(MEMORY, said)
    if any(not line.startswith("minisd") for line in lines):
        return Verdict(WORDS, f"a line of another kind: {lines!r:.300}")
    if printed.status == 0:
        return Verdict(LOADED)
    if printed.status != 2 or not lines:
        return Verdict(TRACEBACK, f"status {printed.status}: {said}")
    if "[Errno" in said or "Traceback" in said:
        return Verdict(WORDS, said)
    return Verdict(REFUSED, said)


def run_command(arguments: list[str]) -> Printed:
    """minisd's command line with these arguments, its output kept.

    What a library in C writes on the error stream comes last.
    """
    from minisd.cli import main

    before = sys.stdout, sys.stderr
    texts = [
        io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace")
    ]
    sys.stdout, sys.stderr = texts
    try:
        with written_below() as below:
            try:
                status = main(arguments)
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 1
        for text in texts:
            text.flush()
        out, err = (text.buffer.getvalue().decode("utf-8", "replace") for text in texts)
    finally:
        sys.stdout, sys.stderr = before
    return Printed(status or 0, out, err + "".join(below))


@contextmanager
def written_below() -> Iterator[list[str]]:
    """What is written on the error stream past Python, as a list of one text. Linux only."""
    below: list[str] = []
    if not hasattr(os, "memfd_create"):
        yield below
        return
    before, kept = os.dup(2), os.memfd_create("below")
    os.dup2(kept, 2)
    try:
        yield below
    finally:
        os.dup2(before, 2)
        os.close(before)
        size = os.lseek(kept, 0, os.SEEK_END)
        below.append(os.pread(kept, size, 0).decode("utf-8", "replace"))
        os.close(kept)
