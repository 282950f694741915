"""Write the exercises at the end of each lesson, from the specs.

    python -m docs.make.lesson_exercises          # all lessons
    python -m docs.make.lesson_exercises 03 07    # only these

Only the new cells are run. docs/make/notebooks.py runs whole lessons.
"""

import argparse
import copy
import subprocess

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from docs.make.notebooks import execute, normalize, read, select_paths, write
from minisd.exercises.exercise import all_exercises
from minisd.exercises.notebooks import LIBRARIES, answer_code, check_call, question_text

TAG = "exercise"
PRIMER = "0b"  # its exercises stand where they are needed
HEAD = """## Write it yourself

Write your code in place of the three dots, and run the cell. `check` tries your answer on hidden
inputs, and says at once what is right. `hint("{first}", 1)` helps, and `minisd exercises` has more
exercises for this lesson."""
READ_ON = "## Read on"


def end_cells(lesson: str) -> list[NotebookNode]:
    """The cells with the exercises of a lesson. They are not run."""
    exercises = [one for one in all_exercises(lesson) if one.in_lesson]
    names = "check, hint, question" if any(one.constants for one in exercises) else "check, hint"
    cells = [new_markdown_cell(HEAD.format(first=exercises[0].name))]
    cells.append(new_code_cell(f"{LIBRARIES}\nfrom minisd.exercises import {names}"))
    for one in exercises:
        text = question_text(one, with_question=not one.constants).replace("## ", "### ", 1)
        cells.append(new_markdown_cell(text))
        if one.constants:
            cells.append(new_code_cell(f'question("{one.name}")'))
        checks = check_call(one, with_student=False)
        cells.append(new_code_cell(format_code(f"{answer_code(one)}\n\n\n{checks}")))
    for cell in cells:
        cell.metadata["tags"] = [TAG]
    return cells


def format_code(code: str) -> str:
    """The code as ruff formats it in a cell."""
    command = ["ruff", "format", "--quiet", "--stdin-filename", "notebooks/cell.py", "-"]
    done = subprocess.run(command, input=code, capture_output=True, text=True, check=True)
    return done.stdout.rstrip()


def run_cells(cells: list[NotebookNode]) -> list[NotebookNode]:
    """The same cells with their outputs, run in a fresh kernel."""
    return execute(new_notebook(cells=copy.deepcopy(cells))).cells


def with_exercises(notebook: NotebookNode, cells: list[NotebookNode]) -> NotebookNode:
    """The notebook with these cells before "Read on", in place of the exercises it had."""
    kept = []
    for cell in notebook.cells:
        if TAG in cell.metadata.get("tags", []):
            continue
        before, heading, after = cell.source.partition(READ_ON)
        if cell.cell_type == "markdown" and heading:
            kept += [new_markdown_cell(before.rstrip())] if before.strip() else []
            kept += [*cells, new_markdown_cell(heading + after)]
        else:
            kept.append(cell)
    whole = copy.deepcopy(notebook)
    whole.cells = kept
    return normalize(whole)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m docs.make.lesson_exercises")
    parser.add_argument("names", nargs="*", help="such as 03; none means all")
    for path in select_paths(parser.parse_args(arguments).names):
        lesson = path.name.split("_")[0]
        if lesson != PRIMER:
            print(path.name, flush=True)
            write(with_exercises(read(path), run_cells(end_cells(lesson))), path)


if __name__ == "__main__":
    main()
