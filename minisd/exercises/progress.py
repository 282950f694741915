"""Where the student stands: which exercises have passed, and which one comes next."""

from pathlib import Path

from minisd.exercises.check import check
from minisd.exercises.exercise import Exercise, all_exercises
from minisd.exercises.learner_folder import (
    find_answer,
    learner_folder,
    read_points,
    student_id,
)
from minisd.exercises.notebooks import (
    LIBRARIES,
    answer_code,
    exercises_of,
    lesson_file,
    lesson_notebook,
    question_text,
)
from minisd.files.whole_files import write_new
from minisd.teaching.plot.canvas import say


def copy_exercises(folder: Path, student: str = "", solved: bool = False) -> list[str]:
    """Write one notebook of exercises for each lesson. Existing files are kept.

    solved: whether the notebooks hold the solutions
    Returns a line for each notebook.
    """
    ending = "_solutions" if solved else ""
    lines = []
    for lesson in dict.fromkeys(one.lesson for one in all_exercises()):
        path = folder / f"{lesson_file(lesson)}{ending}.ipynb"
        lines.append(write_new(path, lesson_notebook(lesson, student, solved)))
    return lines


def next_exercise(lesson: str | None = None) -> None:
    """Show where the student stands, and the question of the next exercise.

    lesson: only look at the exercises of this lesson
    """
    say(describe_standing(lesson))
    waiting = open_exercises(lesson)
    if waiting:
        say(question_text(waiting[0], student_id()))


def open_exercises(lesson: str | None = None) -> list[Exercise]:
    """The exercises that have not passed yet, in the order of the course."""
    points = read_points()
    return [one for one in all_exercises(lesson) if points.get(one.name, 0) < one.points]


def describe_standing(lesson: str | None = None) -> str:
    """One line: how many exercises have passed, and how many points there are."""
    every, points = exercises_of(lesson) if lesson else all_exercises(), read_points()
    passes = len(every) - len(open_exercises(lesson))
    have = sum(points.get(one.name, 0) for one in every)
    bar = "█" * round(20 * passes / len(every))
    whole = sum(one.points for one in every)
    return f"{bar:░<20} {passes} of {len(every)} exercises, {have} of {whole} points"


def work_on_next(lesson: str | None = None) -> None:
    """Check the file of the next exercise, and go on to the one after it when it has passed.

    The file is NAME.py next to the student's folder. If it does not exist, it is written: the
    question, and the stub.

    Raises ValueError if the file raises an error, or lacks the answer.
    """
    describe_standing(lesson)  # refuses an unknown lesson
    while waiting := open_exercises(lesson):
        exercise, student = waiting[0], student_id()
        path = learner_folder().parent / f"{exercise.name}.py"
        if path.exists():
            check(exercise.name, find_answer(path, exercise), student)
        else:
            say(f"{describe_standing(lesson)}\n\n{question_text(exercise, student)}\n")
            write_new(path, f"{LIBRARIES}\n{answer_code(exercise)}\n")
        if exercise in open_exercises(lesson):
            more = f"`minisd exercises hint {exercise.name}` gives a hint."
            say(f"Write your code in {path}, then run the same command again. {more}")
            return
    say(f"{describe_standing(lesson)}: all exercises have passed.")
