"""SandboxJob submissions in processes that hold no answers, and read their results safely."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from minisd.exercises.exercise import Exercise
from minisd.exercises.judge import Failure
from minisd.exercises.plain_data import pack_data, unpack_data
from minisd.exercises.sandbox_child import LARGEST_RESULT, LINUX, REFUSED
from minisd.exercises.visible_tree import write_tree
from minisd.files.json_files import parse_json, read_at_most
from minisd.files.one_line import one_line

CHILD = Path(__file__).with_name("sandbox_child.py")
KEPT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")  # what Python may need to start
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
TOO_LONG = Failure("It ran too long. Look for a loop without an end.", endless=True)
ENDED = Failure("Its process ended early.")
STRANGE = Failure("The result cannot be read.")
NO_ANSWER = Failure("There is no answer in the submission.")
NO_ISOLATION = (
    "this system has neither user namespaces nor Landlock, so a submission could read the answers "
    "or change a mark. Grade on Linux, or pass --trusted if you trust every submission."
)


@dataclass(frozen=True)
class RunLimits:
    """How submissions run.

    seconds: the most time for one exercise of one student
    at_once: how many submissions run at the same time
    trusted: whether they may run on a system that cannot isolate them
    ways: of isolation, those that may be used, the better one first
    """

    seconds: float = 30
    at_once: int = 2
    trusted: bool = False
    ways: tuple[str, ...] = ("namespaces", "landlock")


class SandboxJob(NamedTuple):
    """What runs in one process: the cells of a submission, and their answer to one exercise.

    hidden: the arguments of every stage
    """

    exercise: Exercise
    cells: list[str]
    hidden: list[list]


def run_submissions(jobs: list[SandboxJob], limits: RunLimits) -> tuple[list[list], list[str]]:
    """SandboxJob every job. Returns the results of its stages, and what this system does not limit.

    A result is plain data, or a Failure. A job without cells does not run.

    Raises ValueError if this system cannot isolate submissions, and they are not trusted.
    """
    with TemporaryDirectory(prefix="minisd-grade-") as place:
        for exercise in {job.exercise.name: job.exercise for job in jobs}.values():
            write_tree(exercise, Path(place, exercise.name))
        for number, (exercise, cells, hidden) in enumerate(jobs):
            os.mkdir(folder := Path(place, str(number)))
            stages = [(one.call, x) for one, x in zip(exercise.stages, hidden, strict=True)]
            (folder / "job").write_bytes(pack_data([cells, exercise.solution.__name__, stages]))
        way, slow = start_child(jobs, limits, place)
        if way == "none" and not limits.trusted:
            raise ValueError(NO_ISOLATION)
        results = []
        for number, job in enumerate(jobs):
            problem = TOO_LONG if number in slow else ENDED if job.cells else NO_ANSWER
            paths = [Path(place, str(number), str(i)) for i in range(len(job.hidden))]
            results.append([read_result(path, problem) for path in paths])
    return results, describe_gaps(way)


def start_child(jobs: list[SandboxJob], limits: RunLimits, place: str) -> tuple[str, list[int]]:
    """SandboxJob all jobs, without our environment and our open files.

    Returns the way of isolation, and the numbers of the jobs that were too slow.
    """
    plan = asdict(limits) | {"packages": [path for path in sys.path if path]}
    numbered = [(number, job) for number, job in enumerate(jobs) if job.cells]
    plan["jobs"] = [[number, one.exercise.name, len(one.hidden)] for number, one in numbered]
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-IB", str(CHILD)],
        input=json.dumps(plan).encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=place,
        env=kept | dict.fromkeys(ONE_THREAD, "1"),
        start_new_session=True,
    )
    if done.returncode:
        raise ValueError("the process that runs submissions stopped: see minisd doctor.")
    return json.loads(done.stdout)


def read_result(path: Path, problem: Failure) -> Any:
    """The result of one stage, or a Failure. The file may hold anything.

    problem: what to return if there is no result
    """
    try:
        kind, result = unpack_data(read_at_most(path, LARGEST_RESULT), parse_json)
        return Failure(one_line(result, 300)) if kind == "failure" else result
    except Exception:
        return STRANGE if path.exists() and path.stat().st_size else problem


def describe_gaps(way: str) -> list[str]:
    """What this system does not limit, in words.

    way: how it isolates submissions
    """
    gaps = {
        "the files that a submission reads and writes": way == "none",
        "its use of the network": not REFUSED and way == "none",
        "the number of its processes": not REFUSED,
        "its memory": not LINUX,
    }
    return [f"This system does not limit {what}." for what, is_open in gaps.items() if is_open]
