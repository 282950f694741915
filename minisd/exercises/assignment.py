"""Assignments for nbgrader: notebooks whose graded cells end in the points of an answer."""

import secrets
from collections.abc import Callable
from pathlib import Path

from minisd.exercises.exercise import Exercise, find_exercise
from minisd.exercises.judge import judge
from minisd.exercises.learner_folder import student_id
from minisd.exercises.notebooks import (
    ID_CELL,
    IMPORTS,
    check_call,
    code_cell,
    exercises_of,
    lesson_file,
    markdown_cell,
    notebook_json,
    question_text,
    solution_source,
)
from minisd.files.whole_files import write_new

ABOUT = """\
# Assignment: exercises of lesson {lesson}

Write your code in place of the three dots. The cell with `check` says at once what is right. Your
teacher's computer runs the cell with `score`, which tries other hidden inputs."""

CONFIG = """\
# Settings for nbgrader.
c = get_config()
c.CourseDirectory.course_id = "minisd"
c.ClearSolutions.code_stub = {"python": "..."}
c.Execute.timeout = 120  # seconds for one cell
c.Execute.interrupt_on_timeout = True
"""


def write_assignments(lessons: list[str], folder: Path) -> list[str]:
    """Write one assignment for each lesson, in the layout of nbgrader: source/NAME/NAME.ipynb.

    Returns a line for each file. A file that exists is kept.

    Raises ValueError if a lesson has no exercises, or if a file cannot be written.
    """
    texts = {folder / "nbgrader_config.py": CONFIG}
    for lesson in lessons:
        text, name = assignment_notebook(lesson), lesson_file(lesson)
        texts[folder / "source" / name / f"{name}.ipynb"] = text
    return [write_new(path, text) for path, text in texts.items()]


def assignment_notebook(lesson: str) -> str:
    """The notebook that `nbgrader generate_assignment` reads. The solutions in it are marked."""
    exercises = exercises_of(lesson)
    cells = [markdown_cell(ABOUT.format(lesson=lesson)), code_cell(IMPORTS)]
    if any(one.constants for one in exercises):
        cells.append(code_cell(ID_CELL.format(student="")))
    for one in exercises:
        cells.append(markdown_cell(question_text(one, with_question=not one.constants)))
        if one.constants:
            cells.append(code_cell(f'question("{one.name}", STUDENT)'))
        body = solution_source(one, "", "### BEGIN SOLUTION", "### END SOLUTION")
        given = f"{one.given}\n\n\n" if one.given else ""
        cells.append(code_cell(given + body, nbgrader=cell_role(one.name, solution=True)))
        cells.append(code_cell(check_call(one)))
        grading = f"from minisd.exercises.assignment import score\n\n{grading_call(one)}"
        cells.append(code_cell(grading, nbgrader=cell_role(f"test_{one.name}", points=one.points)))
    return notebook_json(cells)


def grading_call(exercise: Exercise) -> str:
    return f'score("{exercise.name}", {exercise.solution.__name__})'


def cell_role(grade_id: str, solution: bool = False, points: int | None = None) -> dict:
    """nbgrader's metadata of a cell: a solution, or a graded cell with points."""
    role = {"grade": points is not None, "solution": solution, "task": False}
    role |= {"grade_id": grade_id, "locked": not solution, "schema_version": 3}
    return role if points is None else role | {"points": points}


def score(name: str, answer: Callable) -> float:
    """The points of an answer. It prints only which stages passed, never a hidden input.

    nbgrader reads the points from the last value of a cell.
    """
    exercise = find_exercise(name)
    verdict = judge(exercise, answer, student_id(), seed=draw_seed())
    for one in verdict.results:
        print("✗" if one.problem else "✓", one.stage.title)
    if verdict.mistake:
        print(verdict.mistake)
    return float(verdict.points)


def draw_seed() -> int:
    """A new seed for the hidden inputs."""
    return secrets.randbelow(10**9)
