"""Grade the submissions of a class. docs/grading.md says what a submission can and cannot do."""

import csv
import html
import io
import json
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minisd import __version__
from minisd.exercises.check import describe_verdict
from minisd.exercises.exercise import Exercise, all_exercises
from minisd.exercises.judge import Difference, Failure, Verdict, draw_inputs, judge_results
from minisd.exercises.notebooks import signature_source
from minisd.exercises.sandbox import (
    ENDED,
    STRANGE,
    TOO_LONG,
    RunLimits,
    SandboxJob,
    run_submissions,
)
from minisd.files.json_files import read_at_most

LARGEST_FILE = 20 * 10**6  # bytes
FLAGS = {TOO_LONG: "too slow", ENDED: "ended early", STRANGE: "strange result"}


@dataclass
class Student:
    """A student, and what they handed in.

    row: what the class list says    files: the path of each file -> its cells
    twins: the ids of students whose answers are the same code
    """

    row: dict[str, str]
    files: dict[str, list[str]] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    twins: list[str] = field(default_factory=list)

    @property
    def id(self) -> str:
        return self.row["id"]

    @property
    def points(self) -> int:
        return sum(one.points for one in self.verdicts)

    def find_cells(self, exercise: Exercise) -> list[str]:
        """The cells of the file that defines the answer. Empty if no file does.

        If several do, a file of the exercise's lesson comes first.
        """
        name = exercise.solution.__name__
        definition = re.compile(rf"(?m)^[ \t]*(?:(?:class|def) +{name}\b|{name} *[:=])")
        paths = [path for path, cells in self.files.items() if any(map(definition.search, cells))]
        paths.sort(key=lambda path: (Path(path).name.startswith(exercise.lesson), path))
        return self.files[paths[-1]] if paths else []


# ---- what was handed in ------------------------------------------------------------------------


def read_roster(path: Path) -> list[Student]:
    """The students of a class list: a CSV file with the column "id". Other columns are kept.

    Raises ValueError if an id is missing, comes twice, or cannot be the name of a file.
    """
    text = read_at_most(path, LARGEST_FILE).decode("utf-8-sig", errors="replace")
    separator = max(",;\t", key=text.partition("\n")[0].count)
    rows = list(csv.DictReader(io.StringIO(text), delimiter=separator, restval="", restkey=""))
    ids = [row.get("id", "").lower() for row in rows]
    for one in ids or [""]:
        if not re.fullmatch(r"\w[\w@.+ -]*", one) or ids.count(one) > 1:
            raise ValueError(f"{path} has the id {one!r}. Give every student an id of their own.")
    return [Student(row) for row in rows]


def list_files(folder: Path) -> list[Path]:
    """The notebooks and .py files in a folder. Links and hidden files are left out."""
    paths = sorted(Path(place, name) for place, _, names in os.walk(folder) for name in names)
    paths = [path for path in paths if path.suffix in (".ipynb", ".py") and not path.is_symlink()]
    return [path for path in paths if "/." not in f"/{path.relative_to(folder).as_posix()}"]


def hand_out_files(folder: Path, students: list[Student]) -> list[str]:
    """Give every student their files. Returns the files that belong to nobody.

    A student's files are in the folder ID, or are called ID.ipynb or ID.py. More text may follow
    the id, but no letter or digit.
    """
    strangers = []
    for path in list_files(folder):
        first = path.relative_to(folder).parts[0].removesuffix(path.suffix)
        owners = [one for one in students if re.match(rf"{re.escape(one.id)}(?![^\W_])", first)]
        if owners:
            max(owners, key=lambda one: len(one.id)).files[str(path)] = read_cells(path)
        else:
            strangers.append(str(path))
    return strangers


def read_cells(path: Path) -> list[str]:
    """The code of a notebook, cell by cell, or of a .py file. Empty if the file is damaged."""
    try:
        content = read_at_most(path, LARGEST_FILE).decode()
        if path.suffix == ".py":
            return [content]
        cells = json.loads(content)["cells"]
        return ["".join(one["source"]) for one in cells if one["cell_type"] == "code"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []


def find_twins(students: list[Student], exercises: list[Exercise]) -> None:
    """Note for each student whose answers are the same code. Untouched stubs do not count."""
    groups: dict[tuple, list[Student]] = {}
    stubs = [bare_code([signature_source(one)], one) for one in exercises]
    for student in students:
        codes = [bare_code(student.find_cells(one), one) for one in exercises]
        answers = tuple(code * (code != stub) for code, stub in zip(codes, stubs, strict=True))
        if any(answers):
            groups.setdefault(answers, []).append(student)
    for group in groups.values():
        for student in group:
            student.twins = [one.id for one in group if one is not student]


def bare_code(cells: list[str], exercise: Exercise) -> str:
    """The code of an answer, without comments, docstrings and spaces. Empty: there is none.

    The code is not parsed: deeply nested code could end Python's parser, and the grader with it.
    """
    name = exercise.solution.__name__
    block = rf"(?m)^(?:class|def) +{name}\b.*(?:\n(?:[ \t#)].*)?)*"
    code = "".join(re.findall(block, "\n".join(cells))[-1:])
    return re.sub(r'"""[\s\S]*?"""|\'\'\'[\s\S]*?\'\'\'|#.*|\s', "", code)


# ---- verdicts ----------------------------------------------------------------------------------


def judge_all(
    students: list[Student], exercises: list[Exercise], seed: int, limits: RunLimits
) -> list[str]:
    """Judge every student's answers. Returns sentences about what this system does not limit.

    seed: draws the hidden inputs

    Raises ValueError if this system cannot isolate submissions, and they are not trusted.
    """
    hidden = {one.name: draw_inputs(one, seed) for one in exercises}
    tasks = [(student, exercise) for student in students for exercise in exercises]
    jobs = [SandboxJob(one, student.find_cells(one), hidden[one.name]) for student, one in tasks]
    results, gaps = run_submissions(jobs, limits)
    for (student, exercise), got in zip(tasks, results, strict=True):
        student.verdicts.append(judge_reply(exercise, hidden[exercise.name], got, student.id))
    return gaps


def judge_reply(exercise: Exercise, hidden: list[list], got: list, student: str) -> Verdict:
    """The verdict on the results of a submission. What cannot be compared is wrong."""
    try:
        return judge_results(exercise, hidden, got, student)
    except Exception:
        wrong = [Failure("The result cannot be compared.")] * len(got)
        return judge_results(exercise, hidden, wrong, student)


def without_values(verdict: Verdict) -> Verdict:
    """The verdict without numbers of the hidden inputs, and without Markdown from the student."""
    results = []
    for one in verdict.results:
        words = "The result is not right."
        if isinstance(one.problem, Failure):
            sentence = re.sub(r"\d+\.\d*(e[+-]?\d+)?", "…", one.problem.sentence)
            words = html.escape(sentence, quote=False)
        results.append(replace(one, problem=one.problem and Difference(words)))
    return replace(verdict, results=results)


# ---- the table and the feedback ----------------------------------------------------------------


def find_answered(students: list[Student]) -> list[Exercise]:
    """The exercises that somebody has answered."""
    return [one for one in all_exercises() if any(student.find_cells(one) for student in students)]


def table_row(student: Student, seed: int) -> dict[str, Any]:
    """The row of a student: the columns of the class list, all points, and the flags."""
    damaged = [Path(path).name for path, cells in student.files.items() if not cells]
    flags = [f"unreadable: {name}" for name in damaged] if student.files else ["missing"]
    row: dict[str, Any] = {**student.row}
    for verdict in student.verdicts:
        name, problems = verdict.exercise.name, [one.problem for one in verdict.results]
        for one in verdict.results:
            row[f"{name}: {one.stage.title}"] = one.stage.points * (one.problem is None)
        row[name] = verdict.points
        flags += [f"{name}: {flag}" for problem, flag in FLAGS.items() if problem in problems]
    flags += [f"identical to {', '.join(student.twins)}"] * bool(student.twins)
    row |= {"total": student.points, "flags": "; ".join(flags)}
    return row | {"minisd": __version__, "seed": seed}


def table_text(rows: list[dict[str, Any]]) -> str:
    """The rows as CSV."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def feedback_text(student: Student) -> str:
    """What a student gets to read, as Markdown. It shows no hidden input and no right value."""
    if not student.files:
        return f"# {student.id}\n\nNothing was handed in.\n"
    most = sum(one.exercise.points for one in student.verdicts)
    parts = [describe_verdict(without_values(one)) for one in student.verdicts]
    return "\n\n".join([f"# {student.id}", f"{student.points} of {most} points.", *parts]) + "\n"
