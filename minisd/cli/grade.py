"""minisd grade: grade the exercises of a class, or write an autograder for Gradescope."""

import argparse
from pathlib import Path
from typing import Any

from minisd.cli.messages import print_message, print_results


def add_grade(command: argparse.ArgumentParser) -> None:
    """Add the options of `minisd grade`."""
    add = command.add_argument
    command.usage = (
        "minisd grade FOLDER --roster CLASS.csv -o grades.csv [options]\n"
        "       minisd grade --gradescope --exercises NAME … -o autograder.zip"
    )
    add("folder", nargs="?", type=Path, help="the submissions: a folder or a file for each id")
    add("--roster", type=Path, metavar="CSV", help="the class list, a table with the column id")
    what = "the file to write (grades.csv, or autograder.zip)"
    add("-o", "--output", type=Path, metavar="FILE", help=what)
    add("--feedback", type=Path, metavar="DIR", help="also write a page for each student")
    names = "exercises or lessons, such as attend or 07 (all that somebody has answered)"
    add("--exercises", nargs="+", default=[], metavar="NAME", help=names)
    add("--seed", type=int, help="seed of the hidden inputs (drawn at random)")
    add("--seconds", type=float, default=30, help="the most time for one exercise (30)")
    add("--jobs", type=int, default=2, help="how many submissions run at the same time (2)")
    add("--trusted", action="store_true", help="grade even where nothing isolates submissions")
    add("--gradescope", action="store_true", help="write an autograder for Gradescope")
    command.set_defaults(run=grade_command)


def grade_command(options: argparse.Namespace) -> None:
    """Grade a class, or write an autograder."""
    from minisd.exercises.exercise import all_exercises, find_exercise
    from minisd.exercises.gradescope import write_autograder
    from minisd.exercises.sandbox import RunLimits

    chosen = [all_exercises(name) or [find_exercise(name)] for name in options.exercises]
    exercises = [one for some in chosen for one in some]
    limits = RunLimits(options.seconds, options.jobs, options.trusted)
    if not options.gradescope:
        grade_folder(options, exercises, limits, options.output or Path("grades.csv"))
        return
    if not exercises:
        raise ValueError("name the exercises, such as --exercises attend attention.")
    archive = options.output or Path("autograder.zip")
    write_autograder(archive, exercises, limits)
    print_results(archive)


def grade_folder(options: argparse.Namespace, exercises: list, limits: Any, table: Path) -> None:
    """Grade a folder of submissions, and write the table and the feedback."""
    from minisd.exercises import grade
    from minisd.exercises.assignment import draw_seed
    from minisd.files.whole_files import make_folder, write_text

    if not options.folder or not options.roster:
        raise ValueError("write minisd grade FOLDER --roster CLASS.csv -o grades.csv.")
    students = grade.read_roster(options.roster)
    strangers = grade.hand_out_files(options.folder, students)
    exercises = exercises or grade.find_answered(students)
    if not exercises:
        raise ValueError(f"{options.folder} has no answers. Check the folder, and the ids.")
    seed = draw_seed() if options.seed is None else options.seed
    remarks = grade.judge_all(students, exercises, seed, limits)
    grade.find_twins(students, exercises)
    write_text(table, grade.table_text([grade.table_row(x, seed) for x in students]))
    if options.feedback:
        make_folder(options.feedback)
        for student in students:
            write_text(options.feedback / f"{student.id}.md", grade.feedback_text(student))
    for remark in [*remarks, *(f"{path} belongs to nobody in the class." for path in strangers)]:
        print_message(remark, by="minisd grade")
    print_results(f"{table}: {len(students)} students, {len(exercises)} exercises")
