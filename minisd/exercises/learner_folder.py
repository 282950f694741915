"""The student's folder "mine": points, and the answers that have passed."""

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from minisd.exercises.exercise import Exercise
from minisd.exercises.judge import SECONDS, time_limit
from minisd.files.whole_files import make_folder, write_text

POINTS, STUDENT = "points.json", "student.txt"
COPIED = Path("minisd-exercises")  # where `minisd exercises` writes, unless it is told otherwise


def learner_folder() -> Path:
    """The student's folder. It may not exist yet.

    It is MINISD_MINE of the environment, otherwise this folder if it is such a folder, otherwise
    mine/ here, otherwise minisd-exercises/mine.
    """
    if "MINISD_MINE" in os.environ:
        return Path(os.environ["MINISD_MINE"])
    if Path.cwd().name == "mine" and any(map(os.path.exists, (POINTS, STUDENT))):
        return Path.cwd()
    usual, copied = Path("mine"), COPIED / "mine"
    return copied if copied.is_dir() and not usual.is_dir() else usual


def student_id() -> str:
    """The student's id: MINISD_STUDENT or JUPYTERHUB_USER of the environment, or student.txt.

    While nbgrader grades, it is the name of the folder that holds the student's assignment. The id
    is an empty text if nothing says it.
    """
    if os.environ.get("NBGRADER_EXECUTION") == "autograde":
        return Path.cwd().parent.name
    named = os.environ.get("MINISD_STUDENT") or os.environ.get("JUPYTERHUB_USER")
    file = learner_folder() / STUDENT
    return named or (file.read_text(encoding="utf-8").strip() if file.exists() else "")


def read_points() -> dict[str, int]:
    """The best points of each exercise that the student has tried: name -> points.

    Raises ValueError if the file is damaged.
    """
    path = learner_folder() / POINTS
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): int(points) for name, points in found.items()}
    except (ValueError, AttributeError, TypeError, OSError) as error:
        raise ValueError(f"{path} cannot be read. Delete it to start again.") from error


def record_points(name: str, points: int) -> None:
    """Store the points of an exercise, unless the student already had more."""
    best = read_points()
    if points > best.get(name, 0):
        make_folder(learner_folder())
        write_text(learner_folder() / POINTS, json.dumps(best | {name: points}, indent=1) + "\n")


def load_file(path: Path) -> ModuleType:
    """Run a Python file that the student wrote, as the module mine_NAME.

    Raises ValueError, with the line, if the file raises an error, or runs too long.
    """
    name = f"mine_{path.stem}"
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, path
    module = sys.modules[name] = module_from_spec(spec)
    with explain_errors(path.parent), time_limit(SECONDS):
        spec.loader.exec_module(module)
    return module


@contextmanager
def explain_errors(folder: Path) -> Iterator[None]:
    """Turn an error in a file of this folder into a ValueError that names the file and the line."""
    try:
        yield
    except (Exception, SystemExit) as error:  # a student's code may raise anything
        places = [(one.filename, one.lineno) for one in traceback.extract_tb(error.__traceback__)]
        if isinstance(error, SyntaxError):
            places.append((error.filename or "", error.lineno))
        inside = [
            (Path(file), line)
            for file, line in places
            if Path(file).resolve().parent == folder.resolve()
        ]
        if not inside or "memory" in str(error):  # a full memory has its own message
            raise
        file, line = inside[-1]
        words = f"stopped with {type(error).__name__}: {error}".rstrip(".")
        raise ValueError(f"{folder / file.name}, line {line}, {words}.") from error


def find_answer(path: Path, exercise: Exercise) -> Callable:
    """The function or class in a student's file. Raises ValueError if it is not there."""
    name = exercise.solution.__name__
    answer = getattr(load_file(path), name, None)
    if answer is None:
        raise ValueError(f"{path} has no {name}. Write one, or delete the file.")
    return answer
