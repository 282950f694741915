"""Where the student stands: which exercises have passed, and which one comes next."""

from pathlib import Path

from minisd.exercises.check import check
from minisd.exercises.exercise import Exercise, all_exercises, find_exercise
from minisd.exercises.learner_folder import (
    POINTS,
    STUDENT,
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
from minisd.files.whole_files import write_new, write_text
from minisd.teaching.plot.canvas import plain_text, say


def start_learner_folder(place: Path, student: str | None) -> None:
    """Make the folder mine/ at this place, and store the student's id in it, if there is one.

    Raises ValueError if the folder belongs to another student.
    """
    file, points = place / "mine" / STUDENT, place / "mine" / POINTS
    if student and points.exists() and not file.exists():
        raise ValueError(
            f"{place} was begun without an id, so its questions have other constants than yours. "
            f"Choose another folder: minisd exercises {place}-{student} --student {student}."
        )
    write_new(points, "{}\n")
    if student is not None and file.exists():
        owner = file.read_text(encoding="utf-8").strip()
        if owner != student:
            raise ValueError(f"{place} belongs to {owner!r}. Choose another folder.")
    elif student is not None:
        write_text(file, f"{student}\n")


def copy_exercises(folder: Path, student: str = "", solved: bool = False) -> list[str]:
    """Write one notebook of exercises for each lesson. Existing files are kept.

    solved: whether the notebooks hold the solutions
    Returns a line for each new notebook, and one for those that were kept.
    """
    ending = "_solutions" if solved else ""
    lines, kept = [], 0
    for lesson in dict.fromkeys(one.lesson for one in all_exercises()):
        path = folder / f"{lesson_file(lesson)}{ending}.ipynb"
        if path.exists():
            kept += 1
        else:
            lines.append(write_new(path, lesson_notebook(lesson, student, solved)))
    return lines + [f"{kept} notebooks in {folder} exist, and were kept."] * bool(kept)


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


def work_on_next(word: str | None = None) -> None:
    """Check the file of the next exercise, and go on to the one after it when it has passed.

    The file is NAME.py next to the student's folder. If it does not exist, it is written: the
    question, and the stub.

    word: only look at the exercises of this lesson, or work on the exercise of this name

    Raises ValueError if the file raises an error, or lacks the answer.
    """
    if word is not None and not word[:1].isdigit():
        begin_here()
        if work_on(find_exercise(word)):
            say("`minisd exercises next` goes on.")
        return
    describe_standing(word)  # refuses an unknown lesson
    begin_here()
    while waiting := open_exercises(word):
        if not (learner_folder().parent / f"{waiting[0].name}.py").exists():
            say(f"{describe_standing(word)}\n")
        if not work_on(waiting[0]):
            return
    say(f"{describe_standing(word)}: all exercises have passed.")


def begin_here() -> None:
    """Make the student's folder if there is none, and say so."""
    folder = learner_folder()
    if not folder.is_dir():
        begins = f"There is no folder {folder} here, so you start from the beginning."
        say(f"{begins} If you have begun already, go to your folder first: it holds mine.\n")
        write_new(folder / POINTS, "{}\n")


def work_on(exercise: Exercise) -> bool:
    """Check the file of an exercise, or write it. Returns whether the exercise has passed.

    Raises ValueError if the file raises an error, or lacks the answer.
    """
    student, path = student_id(), learner_folder().parent / f"{exercise.name}.py"
    if path.exists():
        check(exercise.name, find_answer(path, exercise), student)
        say("")
        begun = "The question stands at its top."
    else:
        text = question_text(exercise, student)
        say(f"{text}\n")
        lines = plain_text(text, width=77).split("\n")
        comment = "\n".join(f"# {line}".rstrip() for line in lines)
        write_new(path, f"{comment}\n\n{LIBRARIES}\n{answer_code(exercise)}\n")
        begun = f"`minisd exercises hint {exercise.name}` gives a hint."
    if exercise not in open_exercises(exercise.lesson):
        return True
    say(f"Write your code in {path}, then run the same command again. {begun}")
    return False
