"""nbgrader grades six submissions: right, half right, wrong, stub, printing and endless."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import minisd
from minisd.exercises.assignment import score, write_assignments
from minisd.exercises.exercise import find_exercise
from minisd.exercises.judge import draw_inputs

pytest.importorskip("nbgrader")
LESSON, NAME = "07", "07_attention_exercises"

RIGHT = """
def attend(q, k, v, mask=None):
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    scores = scores if mask is None else scores + mask
    return scores.softmax(dim=-1) @ v
"""
HALF = RIGHT.replace("scores if mask is None else scores + mask", "scores")
WRONG = RIGHT.replace("/ q.shape[-1] ** 0.5", "* 2")
PRINTING = RIGHT.replace(
    "    scores = q @",
    "    import sys, warnings\n    from tqdm import tqdm\n    print('hello')\n"
    "    print('hello', file=sys.stderr)\n    warnings.warn('hello')\n"
    "    list(tqdm(range(3)))\n    scores = q @",
    1,
)
ENDLESS = """
def attend(q, k, v, mask=None):
    while True:
        pass
"""
EXPECTED = {"right": 4.0, "half": 3.0, "wrong": 0.0, "stub": 0.0, "printing": 4.0, "endless": 0.0}
CODE = {"right": RIGHT, "half": HALF, "wrong": WRONG, "printing": PRINTING, "endless": ENDLESS}


def nbgrader(folder, *words):
    command = [sys.executable, "-m", "nbgrader", *words]
    environment = os.environ | {"PYTHONPATH": str(Path(minisd.__file__).parents[1])}
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=900, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def submit(folder, kind):
    """Fill in the released notebook as one student, whose id is the kind of the submission."""
    path = folder / "release" / NAME / f"{NAME}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.metadata.get("nbgrader", {}).get("grade_id") == "attend" and kind in CODE:
            cell.source = CODE[kind]
    own = folder / "submitted" / kind / NAME
    own.mkdir(parents=True)
    nbformat.write(notebook, own / f"{NAME}.ipynb")


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A course of nbgrader in which six submissions were graded."""
    folder = tmp_path_factory.mktemp("course")
    write_assignments([LESSON], folder)
    config = folder / "nbgrader_config.py"
    config.write_text(config.read_text() + "c.Autograde.exclude_overwriting = {}\n")
    keep_exercises(folder / "source" / NAME / f"{NAME}.ipynb", "attend")
    nbgrader(folder, "generate_assignment", NAME)
    for kind in EXPECTED:
        submit(folder, kind)
    nbgrader(folder, "autograde", NAME)
    nbgrader(folder, "generate_feedback", NAME)
    return folder


def keep_exercises(path, name):
    """Leave only one exercise in the assignment, so that the test is fast."""
    notebook = nbformat.read(path, as_version=4)
    graded = [i for i, cell in enumerate(notebook.cells) if cell.source.startswith("## ")]
    roles = [cell.metadata.get("nbgrader", {}).get("grade_id") for cell in notebook.cells]
    start = max(i for i in graded if i < roles.index(name))
    notebook.cells = (
        notebook.cells[: graded[0]] + notebook.cells[start : roles.index(f"test_{name}") + 1]
    )
    nbformat.write(notebook, path)


@pytest.mark.parametrize("kind", EXPECTED)
def test_autograde_gives_the_right_score(course, kind):
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as gradebook:
        submission = gradebook.find_submission(NAME, kind)
        assert submission.score == EXPECTED[kind]
        assert submission.max_score == 4.0
        assert not submission.needs_manual_grade


def test_the_released_notebook_holds_no_solution(course):
    text = (course / "release" / NAME / f"{NAME}.ipynb").read_text(encoding="utf-8")
    assert "softmax(dim=-1)" not in text
    assert "BEGIN SOLUTION" not in text


@pytest.mark.parametrize("kind", ["half", "wrong"])
def test_feedback_shows_which_stages_passed_and_no_hidden_input(course, kind):
    """The seed of score() is drawn while it runs, so no number of its inputs is known."""
    html = (course / "feedback" / kind / NAME / f"{NAME}.html").read_text(encoding="utf-8")
    graded = html[html.index("minisd.exercises.assignment") :]
    assert "✗ a mask" in graded or "✗ one query" in graded
    assert "expected" not in graded


def test_the_hidden_inputs_differ_from_those_of_check(monkeypatch):
    seeds = []
    exercise = find_exercise("attend")
    monkeypatch.setattr("minisd.exercises.assignment.judge", lambda *a, seed: seeds.append(seed))
    for _ in range(2):
        with pytest.raises(AttributeError):
            score("attend", exercise.solution)
    assert len({0, *seeds}) == 3
    first, second = (draw_inputs(exercise, seed)[0][0] for seed in seeds)
    assert not first.equal(second)


def test_score_is_a_plain_float(capsys):
    points = score("attend", find_exercise("attend").solution)
    assert type(points) is float and points == 4.0
    assert capsys.readouterr().err == ""
    assert json.dumps(points) == "4.0"
