"""The long run: python -m tests.fuzz --cases 50000"""

import argparse
import json
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

from tests.fuzz.case import Case
from tests.fuzz.judge import DIED, FAULTS, LOADED, REFUSED, SECONDS, Verdict, judge
from tests.fuzz.readers import READERS
from tests.fuzz.run import keep, kept, read_good

CHUNK = 1500  # cases of one process
ROUND = 10_000  # cases of one round, where only the time is limited
DEATHS = 10  # of one chunk, and then its rest is given up
HEADS = ("loaded", "refused", "traceback", "its words", "hang", "memory", "code", "wrong", "died")


@dataclass
class Found:
    """What happened to one reader's cases. faults: by what they have in common, one of each"""

    kinds: Counter = field(default_factory=Counter)
    faults: dict[str, dict] = field(default_factory=dict)
    counts: Counter = field(default_factory=Counter)
    seconds: float = 0.0

    def add(self, line: dict) -> None:
        self.kinds[line["kind"]] += 1
        if line["kind"] in FAULTS:
            self.counts[line["sign"]] += 1
            known = self.faults.setdefault(line["sign"], line)
            if "kept" in line and "kept" not in known:
                self.faults[line["sign"]] = line


@dataclass(frozen=True)
class Job:
    """So many cases of one reader, in one process."""

    reader: str
    cases: int
    seed: int


def main() -> int:
    options = arguments().parse_args()
    if options.replay:
        return replay(options.replay)
    if options.guided:
        return guided(options)
    first = secrets.randbelow(2**31) if options.seed is None else options.seed
    folder = options.faults or Path(tempfile.gettempdir()) / f"minisd-fuzz-{first}"
    print(f"seed {first}, faults in {folder}", flush=True)
    began = time.time()
    found = {name: Found() for name in options.reader or READERS}
    for number, jobs in enumerate(rounds(options, first, list(found), began)):
        with ThreadPoolExecutor(options.processes) as pool:
            places = [folder / f"{number}-{i}" for i in range(len(jobs))]
            results = pool.map(lambda p: run(*p, options), zip(jobs, places, strict=True))
            for job, result in zip(jobs, results, strict=True):
                merge(found[job.reader], result)
    print(table(found, time.time() - began))
    return 1 if any(one.faults for one in found.values()) else 0


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, help="in all (50000, or as many as --minutes allow)")
    parser.add_argument("--minutes", type=float, help="stop after so long")
    parser.add_argument("--seed", type=int, help="of the first cases (a new one, which is printed)")
    parser.add_argument("--reader", action="append", choices=sorted(READERS), metavar="NAME")
    parser.add_argument("--processes", type=int, default=2, help="at once (2)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that a case may take (5)")
    parser.add_argument("--faults", type=Path, metavar="FOLDER", help="where faults are saved")
    parser.add_argument("--replay", type=Path, metavar="FOLDER", help="read one saved fault again")
    parser.add_argument("--guided", action="store_true", help="by coverage, with atheris")
    return parser


def rounds(options: argparse.Namespace, first: int, names: list[str], began: float):
    """Lists of jobs: one, or as many as the time allows, each with other seeds."""
    cases = options.cases or (ROUND if options.minutes else 50_000)
    number = 0
    while number == 0 or (options.minutes and not options.cases):
        if options.minutes and time.time() - began > 60 * options.minutes:
            return
        yield jobs_of(cases, first + 1000 * number, names)
        number += 1


def jobs_of(cases: int, first: int, names: list[str]) -> list[Job]:
    """The cases shared out, in pieces, the longest first."""
    shares = {name: READERS[name].share for name in names}
    jobs = []
    for name, share in shares.items():
        left = ceil(cases * share / sum(shares.values()))
        while left > 0:
            jobs.append((name, min(left, CHUNK)))
            left -= CHUNK
    return [Job(name, number, first + i) for i, (name, number) in enumerate(jobs)]


def run(job: Job, folder: Path, options: argparse.Namespace) -> Found:
    """Give the job to a process, and its rest to another one where that dies."""
    found, began = Found(), time.time()
    until = began + 60 * options.minutes if options.minutes else float("inf")
    for life in range(DEATHS):
        left = job.cases - sum(found.kinds.values())
        place = folder / str(life)
        worker = [sys.executable, "-m", f"{__package__}.worker", f"--reader={job.reader}"]
        worker += ["--cases", str(left), "--seed", str(job.seed + 100_000 * life)]
        worker += ["--seconds", str(options.seconds), "--until", str(until)]
        place.mkdir(parents=True)
        with open(place / "output.txt", "wb") as output:
            ended = subprocess.run([*worker, "--folder", str(place)], stdout=output, stderr=output)
        for line in lines(place / "log.jsonl"):
            found.add(line)
        if ended.returncode == 0:
            break
        found.add(death(job, place, ended.returncode))
        if life and not lines(place / "log.jsonl"):
            break  # it does not even begin
    found.seconds = time.time() - began
    return found


def lines(log: Path) -> list[dict]:
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    return [json.loads(line) for line in text.split("\n") if line.endswith("}")]


def death(job: Job, place: Path, status: int) -> dict:
    """The case that a process died of: what it had written down, and the files it was reading."""
    said = (place / "output.txt").read_text(encoding="utf-8", errors="replace")
    kind = "hang" if "Timeout" in said else DIED
    where = [row for row in said.splitlines() if "minisd" in row and "fuzz" not in row][:1]
    about = {"kind": kind, "why": f"status {status}", "where": "".join(where).strip()}
    if (place / "now.json").exists():
        now = json.loads((place / "now.json").read_text(encoding="utf-8"))
        (inside,) = [*(place / "work").glob("minisd-fuzz-*"), None][:1]
        paths = [path for path in inside.rglob("*") if path.is_file()] if inside else []
        files = {path.relative_to(inside).as_posix(): path.read_bytes() for path in paths}
        verdict = Verdict(kind, about["why"], about["where"])
        keep(
            place / "faults" / "death",
            READERS[job.reader],
            Case(files, now["target"]),
            verdict,
            job.seed,
        )
        about["kept"] = str(place / "faults" / "death")
    return about | {"sign": f"{kind} {about['where']} {about['why']}"}


def merge(all_of_it: Found, found: Found) -> None:
    all_of_it.kinds += found.kinds
    all_of_it.counts += found.counts
    all_of_it.faults = found.faults | all_of_it.faults
    all_of_it.seconds += found.seconds


def table(found: dict[str, Found], seconds: float) -> str:
    """The table of all readers, then one line for every kind of fault."""
    kinds = (LOADED, REFUSED, *FAULTS)
    rows = [("reader", "cases", *HEADS, "a second")]
    total: Counter = Counter()
    for name, one in found.items():
        number = sum(one.kinds.values())
        speed = f"{number / max(one.seconds, 0.1):.0f}"
        rows.append((name, str(number), *(str(one.kinds[kind]) for kind in kinds), speed))
        total += one.kinds
    number = sum(total.values())
    speed = f"{number / max(seconds, 0.1):.0f}"
    rows.append(("all", str(number), *(str(total[kind]) for kind in kinds), speed))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = []
    for first, *numbers in rows:
        columns = [number.rjust(w) for number, w in zip(numbers, widths[1:], strict=True)]
        text.append("  ".join([first.ljust(widths[0]), *columns]))
    for name, one in found.items():
        for sign, line in sorted(one.faults.items(), key=lambda pair: -one.counts[pair[0]]):
            text.append(f"{one.counts[sign]:5}  {name}: {line['kind']} at {line['where']}")
            text.append(f"       {line['why']!a:.200}")
            text.append(f"       --replay {line.get('kept')}")
    return "\n".join([*text, f"{seconds:.0f} s"])


def replay(folder: Path) -> int:
    """Read a saved case again, and say what it does."""
    name, case = kept(folder)
    reader = READERS[name]
    read_good(reader)
    verdict = judge(reader, case)
    print(f"{name}: {verdict.kind} {verdict.where}\n{verdict.why}")
    return int(verdict.is_fault)


def guided(options: argparse.Namespace) -> int:
    """In a process of its own: atheris has to come before all that it watches."""
    worker = [
        sys.executable,
        "-m",
        f"{__package__}.guided",
        *(options.reader or ["safetensors"])[:1],
    ]
    return subprocess.run([*worker, f"-runs={options.cases or 50_000}"]).returncode


if __name__ == "__main__":
    sys.exit(main())
