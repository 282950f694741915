"""A process that reads many cases of one reader, and may die of one:

python -m tests.fuzz.worker --reader LoRA --cases 100 --seed 1 --folder /tmp/x

It writes log.jsonl, a line for each case; faults/N for some of each kind; now.json, what it reads.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import torch

from minisd.tokenizer import Tokenizer
from tests.fuzz.case import Case
from tests.fuzz.judge import SECONDS, Limits, Verdict
from tests.fuzz.readers import READERS
from tests.fuzz.readers.models import kept_clip
from tests.fuzz.run import keep, read_good, run_cases

KEPT = 2  # of one kind, at one place


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--reader", required=True, choices=sorted(READERS))
    parser.add_argument("--cases", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--until", type=float, default=float("inf"))
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    work(options)


class TimeIsUp(Exception):
    """The whole run is over, not only a case."""


def work(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    sys.dont_write_bytecode = True
    Tokenizer.clip = staticmethod(kept_clip)
    reader, folder = READERS[options.reader], options.folder
    (folder / "work").mkdir(parents=True)
    tempfile.tempdir = str(folder / "work")
    read_good(reader)
    seen: Counter = Counter()
    with open(folder / "log.jsonl", "w", encoding="utf-8") as log:

        def begin(case: Case) -> None:
            if time.time() > options.until:
                raise TimeIsUp
            now = {"reader": reader.name, "target": case.target}
            (folder / "now.json").write_text(json.dumps(now), encoding="utf-8")

        def record(case: Case, verdict: Verdict) -> None:
            sign = f"{verdict.kind} {verdict.where} {verdict.why.partition(':')[0]}"
            about = {"kind": verdict.kind}
            if verdict.is_fault:
                seen[sign] += 1
                about |= {"why": verdict.why, "where": verdict.where, "sign": sign}
                if seen[sign] <= KEPT:
                    place = folder / "faults" / str(sum(seen.values()))
                    keep(place, reader, case, verdict, options.seed)
                    about["kept"] = str(place)
            log.write(json.dumps(about) + "\n")
            log.flush()

        with suppress(TimeIsUp):
            run_cases(
                reader,
                options.cases,
                options.seed,
                record,
                Limits(seconds=options.seconds, hard=True),
                begin,
            )


if __name__ == "__main__":
    main()
