"""minisd exercises, minisd assignment: hand out exercises, and show what comes next."""

import argparse
from difflib import get_close_matches
from pathlib import Path

from minisd.cli.messages import print_results


def add_exercises(command: argparse.ArgumentParser) -> None:
    """Add the options of `minisd exercises`."""
    add = command.add_argument
    command.usage = (
        "minisd exercises [FOLDER] [--student ID] [--solutions]\n"
        "       minisd exercises next [LESSON or NAME]\n"
        "       minisd exercises hint NAME [NUMBER]"
    )
    what = "where to copy the notebooks (minisd-exercises), or: next, hint"
    add("words", nargs="*", metavar="FOLDER", help=what)
    add("--student", metavar="ID", help="your id: some exercises have constants that depend on it")
    add("--solutions", action="store_true", help="copy the notebooks with the solutions")
    command.epilog = (
        "`minisd exercises next` shows the next exercise, and writes a file for it. When you have "
        "written your code there, run it again: it checks the file, and goes on. With the name "
        "of an exercise, it works on this exercise."
    )
    command.set_defaults(run=exercises_command)


def exercises_command(options: argparse.Namespace) -> None:
    """Copy the notebooks with the exercises, show the next exercise, or show a hint."""
    from minisd.exercises import progress
    from minisd.exercises.check import hint
    from minisd.exercises.learner_folder import COPIED, student_id

    first, *others = options.words or [str(COPIED)]
    refuse_other_words(first)
    if len(others) > {"next": 1, "hint": 2}.get(first, 0):
        raise ValueError(f"{others[-1]!r} is one word too many: see minisd exercises --help.")
    if first in ("next", "hint") and (options.student is not None or options.solutions):
        raise ValueError(f"--student and --solutions do not go with {first}. Leave them out.")
    if first == "hint" and not others:
        raise ValueError("which exercise? Write minisd exercises hint NAME.")
    if first == "next":
        progress.work_on_next(*others)
    elif first == "hint":
        number = others[1] if others[1:] else "1"
        if number not in ("1", "2", "3"):
            raise ValueError(f"the hint must be 1, 2 or 3, not {number!r}.")
        hint(others[0], int(number))
    else:
        progress.start_learner_folder(Path(first), options.student)
        student = student_id() if options.student is None else options.student
        print_results(*progress.copy_exercises(Path(first), student, options.solutions))
        way = f"Open them with jupyter lab, or go to {first} and run minisd exercises next."
        print_results(way)


def refuse_other_words(first: str) -> None:
    """Raise ValueError for a folder that looks like a lesson, an exercise, or a wrong "next"."""
    from minisd.exercises.exercise import all_exercises

    if first in ("next", "hint"):
        return
    names = {name for one in all_exercises() for name in (one.lesson, one.name)}
    words = get_close_matches(first.lower(), ["next", "hint"], n=1, cutoff=0.7)
    if {first.lower(), f"0{first.lower()}"} & names:
        words = [f"next {first}"]
    if words:
        meant = f"did you mean minisd exercises {words[0]}?"
        raise ValueError(f"{meant} For a folder of this name, write ./{first}.")


def add_assignment(command: argparse.ArgumentParser) -> None:
    """Add the options of `minisd assignment`."""
    add = command.add_argument
    add("lessons", nargs="+", metavar="LESSON", help="the number of a lesson, such as 07")
    place = "the course folder of nbgrader (minisd-course)"
    add("-o", "--output", type=Path, default=Path("minisd-course"), metavar="DIR", help=place)
    command.set_defaults(run=assignment_command)


def assignment_command(options: argparse.Namespace) -> None:
    """Write assignments for nbgrader."""
    from minisd.exercises.assignment import write_assignments

    print_results(*write_assignments(options.lessons, options.output))
