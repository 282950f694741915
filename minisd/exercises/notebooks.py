"""The notebooks of exercises, made from the specs: one for each lesson, with or without answers."""

import ast
import copy
import hashlib
import inspect
import json

from minisd.config import NOTEBOOKS
from minisd.exercises.exercise import Exercise, all_exercises
from minisd.teaching.plot.canvas import in_notebook

LIBRARIES = """\
import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import nn
"""

IMPORTS = f"""\
{LIBRARIES}
from minisd.exercises import check, hint, next_exercise, portrait, question"""

HOW_TO = """\
# Exercises of lesson {lesson}

Write your code in place of the three dots, and run the cell below it. `check` says at once what is
right. It tries your answer on hidden inputs, so your answer must work for every size. Try each
exercise without looking at the lesson's code.

- `hint("{first}", 1)` gives a hint. Hints 2 and 3 say more.
{portrait}- `next_exercise("{lesson}")` shows where you stand."""

PORTRAIT = """\
- `portrait("{name}", {answer})` draws with your answer, right or wrong, and shows the right picture
  next to it.
"""

ID_CELL = """\
# Your student id. The constants of some exercises depend on it.
STUDENT = {student!r}"""


def lesson_notebook(lesson: str, student: str = "", solved: bool = False) -> str:
    """The notebook with the exercises of a lesson, as JSON (nbformat 4.5).

    student: the student's id. It decides the constants in some questions
    solved: True: with the solutions, for teachers

    Raises ValueError if the lesson has no exercises.
    """
    exercises = exercises_of(lesson)
    cells = [markdown_cell(how_to_text(exercises)), code_cell(IMPORTS)]
    if any(one.constants for one in exercises):
        cells.append(code_cell(ID_CELL.format(student=student)))
    for one in exercises:
        cells.append(markdown_cell(question_text(one, student)))
        cells.append(code_cell(answer_code(one, solved, student)))
        cells.append(code_cell(check_call(one)))
        cells += [markdown_cell(teacher_notes(one))] if solved else []
    return notebook_json(cells)


def how_to_text(exercises: list[Exercise]) -> str:
    """What stands above the exercises of a lesson. portrait() is shown if there is a picture."""
    drawn = [one for one in exercises if one.draw]
    portrait = ""
    if drawn:
        portrait = PORTRAIT.format(name=drawn[0].name, answer=drawn[0].solution.__name__)
    first = exercises[0]
    return HOW_TO.format(lesson=first.lesson, first=first.name, portrait=portrait)


def exercises_of(lesson: str) -> list[Exercise]:
    """The exercises of a lesson, such as "07". Raises ValueError if it has none."""
    exercises = all_exercises(lesson)
    if not exercises:
        lessons = ", ".join(dict.fromkeys(one.lesson for one in all_exercises()))
        raise ValueError(f"lesson {lesson!r} has no exercises. Choose one of {lessons}.")
    return exercises


def lesson_file(lesson: str) -> str:
    """The name of the notebook with the exercises of a lesson, such as "07_attention_exercises"."""
    return f"{next(NOTEBOOKS.glob(f'{exercises_of(lesson)[0].lesson}_*.ipynb')).stem}_exercises"


def question_text(exercise: Exercise, student: str = "", with_question: bool = True) -> str:
    """The question as Markdown, with what it needs and what it is worth.

    with_question: False: only what stands around the question
    """
    stars = "★" * exercise.difficulty + "☆" * (4 - exercise.difficulty)
    needs = f" · builds on {', '.join(exercise.needs)}" if exercise.needs else ""
    facts = f"{stars} · {exercise.minutes} minutes · {points_text(exercise.points)}{needs}"
    stages = "\n".join(f"- {one.title} ({points_text(one.points)})" for one in exercise.stages)
    heading = f"## {exercise.title}\n\n`{exercise.name}` · {facts}"
    question = f"{exercise.question_for(student)}\n\n" if with_question else ""
    return f"{heading}\n\n{question}What is tried:\n\n{stages}"


def points_text(points: int) -> str:
    """ "1 point", "2 points"."""
    return f"{points} point{'s' * (points != 1)}"


def answer_code(exercise: Exercise, solved: bool = False, student: str = "") -> str:
    """The cell in which the student writes: the given code, and the stub or the solution."""
    body = solution_source(exercise, student) if solved else signature_source(exercise)
    return f"{exercise.given}\n\n\n{body}" if exercise.given else body


def signature_source(exercise: Exercise) -> str:
    """The stub of an exercise: the solution's signatures and docstrings, with ... as the code."""
    tree = ast.parse(inspect.getsource(exercise.solution)).body[0]
    for node in outer_functions(tree):
        node.args.kwonlyargs, node.args.kw_defaults = [], []
        node.body = [*node.body[: first_step(node)], ast.Expr(ast.Constant(...))]
    return ast.unparse(tree)


def solution_source(exercise: Exercise, student: str = "", begin: str = "", end: str = "") -> str:
    """The solution. Its first lines set the constants of this student.

    begin, end: comments to write around the code of each function. Empty: none
    """
    source = inspect.getsource(exercise.solution).rstrip()
    lines = source.split("\n")
    constants = exercise.constants_of(student)
    for node in reversed(outer_functions(ast.parse(source).body[0])):
        step = first_step(node)
        if step == len(node.body):
            continue
        first = node.body[step]
        before = node.body[step - 1].end_lineno if step else first.lineno - 1
        named = [one.arg for one in node.args.kwonlyargs if one.arg in constants]
        opening = [begin] * bool(begin) + [f"{name} = {constants[name]!r}" for name in named]
        indent = " " * first.col_offset
        lines[node.end_lineno : node.end_lineno] = [indent + end] * bool(end)
        lines[before:before] = [indent + line for line in opening]
        if named:
            lines[node.lineno - 1 : node.body[0].lineno - 1] = header_lines(node)
    return "\n".join(lines)


def outer_functions(tree: ast.stmt) -> list[ast.FunctionDef]:
    """The function itself, or the methods of the class, in the order of the source."""
    body = tree.body if isinstance(tree, ast.ClassDef) else [tree]
    return [node for node in body if isinstance(node, ast.FunctionDef)]


def first_step(node: ast.FunctionDef) -> int:
    """The index of the first statement that a student writes: after docstring and super()."""
    docstring = ast.get_docstring(node) is not None
    return docstring + (ast.unparse(node.body[docstring]) == "super().__init__()")


def header_lines(node: ast.FunctionDef) -> list[str]:
    """The line "def …:" of a function without its keyword-only arguments."""
    bare = copy.deepcopy(node)
    bare.args.kwonlyargs, bare.args.kw_defaults, bare.body = [], [], [ast.Expr(ast.Constant(...))]
    return [" " * node.col_offset + line for line in ast.unparse(bare).split("\n")[:-1]]


def check_call(exercise: Exercise, with_student: bool = True) -> str:
    """The code that checks the answer.

    with_student: whether a cell above defines STUDENT
    """
    student = ", STUDENT" if exercise.constants and with_student else ""
    return f'check("{exercise.name}", {exercise.solution.__name__}{student})'


def hint_call(name: str) -> str:
    """How to get the hints of an exercise, in a notebook or in a terminal."""
    if in_notebook():
        return f'`hint("{name}", 1)` gives a hint. Hints 2 and 3 say more.'
    return f"`minisd exercises hint {name}` gives a hint. Add 2 or 3 for more."


def teacher_notes(exercise: Exercise) -> str:
    """For teachers: the hints, and the mistakes that check() names."""
    hints = "\n".join(f"{i}. {words}" for i, words in enumerate(exercise.hints, start=1))
    mistakes = "\n".join(f"- {sentence}" for sentence in exercise.mistakes)
    return f"**Hints**\n\n{hints}\n\n**Mistakes that `check` names**\n\n{mistakes}"


def markdown_cell(text: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def code_cell(text: str, **metadata: object) -> dict:
    cell = {"cell_type": "code", "metadata": metadata, "source": text}
    return cell | {"execution_count": None, "outputs": []}


def notebook_json(cells: list[dict]) -> str:
    """A notebook of these cells. The id of a cell is computed from its place and its text."""
    for index, cell in enumerate(cells):
        cell["id"] = hashlib.sha256(f"{index} {cell['source']}".encode()).hexdigest()[:8]
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": python, "language_info": {"name": "python"}}
    whole = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"
