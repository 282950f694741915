"""Write the exercises of each lesson, from the specs.

    python -m docs.make.lesson_exercises          # all lessons
    python -m docs.make.lesson_exercises 03 07    # only these

An exercise stays where its cells are: they have the tag "write-" and its name. A new exercise goes
to the end of the lesson, below the heading "Write it yourself", which is written by hand. Only the
exercises' cells are run. docs/make/notebooks.py runs whole lessons.
"""

import argparse
import copy
import subprocess

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from docs.make.notebooks import execute, normalize, read, select_paths, write
from minisd.exercises.exercise import Exercise, all_exercises
from minisd.exercises.notebooks import LIBRARIES, answer_code, check_call, question_text

TAG = "exercise"
PRIMER = "0b"  # its exercises are written by hand
START = """Write your code in place of the three dots, and run the cell. `check` tries your answer
on hidden inputs, and says at once what is right. `hint("{first}", 1)` helps."""
AFTER_THE_END = ("## In class", "## Read on")


def write_tag(one: Exercise) -> str:
    """The tag of the cells of an exercise, such as write-add-noise."""
    return "write-" + one.name.replace("_", "-")


def start_cells(exercises: list[Exercise]) -> list[NotebookNode]:
    """The cells above the first exercise of a lesson. They are not run."""
    names = "check, hint, question" if any(one.constants for one in exercises) else "check, hint"
    imports = f"{LIBRARIES}\nfrom minisd.exercises import {names}"
    return [new_markdown_cell(START.format(first=exercises[0].name)), new_code_cell(imports)]


def exercise_cells(one: Exercise) -> list[NotebookNode]:
    """The cells of one exercise. They are not run."""
    text = question_text(one, with_question=not one.constants).replace("## ", "### ", 1)
    cells = [new_markdown_cell(text)]
    if one.constants:
        cells.append(new_code_cell(f'question("{one.name}")'))
    checks = check_call(one, with_student=False)
    return [*cells, new_code_cell(format_code(f"{answer_code(one)}\n\n\n{checks}"))]


def format_code(code: str) -> str:
    """The code as ruff formats it in a cell."""
    command = ["ruff", "format", "--quiet", "--stdin-filename", "notebooks/cell.py", "-"]
    done = subprocess.run(command, input=code, capture_output=True, text=True, check=True)
    return done.stdout.rstrip()


def run_cells(cells: list[NotebookNode]) -> list[NotebookNode]:
    """The same cells with their outputs, run in a fresh kernel."""
    return execute(new_notebook(cells=copy.deepcopy(cells))).cells


def places(notebook: NotebookNode, exercises: list[Exercise]) -> list[NotebookNode | Exercise]:
    """The notebook's other cells, and each exercise where it belongs."""
    kept: list[NotebookNode | Exercise] = []
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if TAG not in tags:
            kept.append(cell)
        kept += [one for one in exercises if write_tag(one) in tags and one not in kept]
    new = [one for one in exercises if one not in kept]
    ends = (n for n, cell in enumerate(kept) if text_of(cell).startswith(AFTER_THE_END))
    end = next(ends, len(kept))
    return [*kept[:end], *new, *kept[end:]]


def text_of(cell: NotebookNode | Exercise) -> str:
    return "" if isinstance(cell, Exercise) else cell.source


def with_exercises(notebook: NotebookNode, exercises: list[Exercise]) -> NotebookNode:
    """The notebook with these exercises, whose cells are run."""
    parts, cells = places(notebook, exercises), []
    ordered = [part for part in parts if isinstance(part, Exercise)]
    for part in parts:
        if isinstance(part, Exercise):
            start = start_cells(ordered) if part is ordered[0] else []
            new = [*start, *exercise_cells(part)]
            for cell in new:
                cell.metadata["tags"] = [TAG, write_tag(part)]
            cells += new
        else:
            cells.append(part)
    mine = [TAG in cell.metadata.get("tags", []) for cell in cells]
    run = iter(run_cells([cell for cell, is_mine in zip(cells, mine, strict=True) if is_mine]))
    whole = copy.deepcopy(notebook)
    whole.cells = [
        next(run) if is_mine else cell for cell, is_mine in zip(cells, mine, strict=True)
    ]
    return normalize(whole)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m docs.make.lesson_exercises")
    parser.add_argument("names", nargs="*", help="such as 03; none means all")
    for path in select_paths(parser.parse_args(arguments).names):
        lesson = path.name.split("_")[0]
        if lesson != PRIMER:
            print(path.name, flush=True)
            exercises = [one for one in all_exercises(lesson) if one.in_lesson]
            write(with_exercises(read(path), exercises), path)


if __name__ == "__main__":
    main()
