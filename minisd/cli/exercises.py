"""minisd exercises, minisd assignment: hand out exercises, and show what comes next."""

import argparse
from pathlib import Path

from minisd.cli.messages import print_results


def add_exercises(command: argparse.ArgumentParser) -> None:
    """Add the options of `minisd exercises`."""
    add = command.add_argument
    command.usage = (
        "minisd exercises [FOLDER] [--student ID] [--solutions]\n"
        "       minisd exercises next [LESSON]\n"
        "       minisd exercises hint NAME [NUMBER]"
    )
    what = "where to copy the notebooks (minisd-exercises), or: next, hint"
    add("words", nargs="*", metavar="FOLDER", help=what)
    add("--student", metavar="ID", help="your id: some exercises have constants that depend on it")
    add("--solutions", action="store_true", help="copy the notebooks with the solutions")
    command.epilog = (
        "`minisd exercises next` shows the next exercise, and writes a file for it. When you have "
        "written your code there, run it again: it checks the file, and goes on."
    )
    command.set_defaults(run=exercises_command)


def exercises_command(options: argparse.Namespace) -> None:
    """Copy the notebooks with the exercises, show the next exercise, or show a hint."""
    from minisd.exercises import progress
    from minisd.exercises.check import hint
    from minisd.exercises.learner_folder import COPIED, start_learner_folder, student_id

    first, *others = options.words or [str(COPIED)]
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
        hint(others[0], int(number) if number.isdigit() else 0)
    else:
        start_learner_folder(Path(first), options.student)
        student = student_id() if options.student is None else options.student
        print_results(*progress.copy_exercises(Path(first), student, options.solutions))


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
