"""Many cases of one reader, built by hypothesis."""

import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz import watch
from tests.fuzz.case import Case, Reader
from tests.fuzz.judge import LOADED, REFUSED, USUAL, Limits, Verdict, judge

GENEROUS = Limits(seconds=60, bytes=10**10)


def read_good(reader: Reader) -> None:
    """Read the unbroken cases first, unwatched: what they import is no surprise later.

    Then watched, each has to load. Raises AssertionError where one does not.
    """
    for case in reader.good():
        with (
            tempfile.TemporaryDirectory() as folder,
            suppress(ValueError),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            reader.read(case.write(Path(folder)))
        watch.learn_modules()
        verdict = judge(reader, case, GENEROUS)
        wanted = {True: [REFUSED], False: [LOADED], None: [LOADED, REFUSED]}[case.refused]
        assert verdict.kind in wanted, f"{reader.name}: {case.target}: {verdict}"


def run_cases(
    reader: Reader,
    number: int,
    first: int,
    record: Callable[[Case, Verdict], None],
    limits: Limits = USUAL,
    begin: Callable[[Case], None] = lambda case: None,
) -> None:
    """Judge so many cases and hand each with its verdict to record().

    first: the seed    begin: is told of each case before it is read
    """

    @seed(first)
    @settings(
        max_examples=number,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(reader.cases())
    def each(case: Case) -> None:
        begin(case)
        record(case, judge(reader, case, limits))

    each()


def keep(folder: Path, reader: Reader, case: Case, verdict: Verdict, first: int) -> None:
    """Save a case so that --replay reads it again."""
    folder.mkdir(parents=True, exist_ok=True)
    case.write(folder / "files")
    about = {"reader": reader.name, "target": case.target, "seed": first, "python": sys.version}
    about |= {"kind": verdict.kind, "why": verdict.why, "where": verdict.where}
    text = json.dumps(about, indent=1, ensure_ascii=True)
    (folder / "case.json").write_text(text, encoding="utf-8")


def kept(folder: Path) -> tuple[str, Case]:
    """The name of the reader and the case that keep() saved."""
    about = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    inside = folder / "files"
    paths = [path for path in inside.rglob("*") if path.is_file()]
    files = {path.relative_to(inside).as_posix(): path.read_bytes() for path in paths}
    return about["reader"], Case(files, about["target"])
