"""minisd exercises: copies that are never overwritten, and one command that shows what is next."""

import json

import nbformat
import pytest

from minisd.cli import main
from minisd.exercises import check, hint, next_exercise, question
from minisd.exercises.exercise import all_exercises, find_exercise
from minisd.exercises.notebooks import (
    LIBRARIES,
    answer_code,
    lesson_notebook,
    signature_source,
    solution_source,
)
from minisd.teaching.plot.canvas import plain_text

LESSONS = list(dict.fromkeys(one.lesson for one in all_exercises()))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder, in which the commands run. No id is set."""
    for name in ("MINISD_STUDENT", "MINISD_MINE", "JUPYTERHUB_USER", "NBGRADER_EXECUTION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("lesson", LESSONS)
def test_the_students_notebook_is_valid_and_holds_no_solution(lesson):
    text = lesson_notebook(lesson, "ada")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    for one in all_exercises(lesson):
        assert json.dumps(solution_source(one, "ada"))[1:-1] not in text
        code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell for cell in code if cell.endswith(signature_source(one))]
        assert one.question_for("ada") in "".join(cell.source for cell in notebook.cells)


@pytest.mark.parametrize("lesson", LESSONS)
def test_the_teachers_notebook_passes(lesson, folder, capsys):
    """Every cell runs, with the constants of the student whose notebook it is."""
    notebook = nbformat.reads(lesson_notebook(lesson, "ada", solved=True), as_version=4)
    space: dict = {"__name__": "__main__"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            exec(cell.source, space)
    printed = capsys.readouterr().out
    assert printed.count("is right") == len(all_exercises(lesson))


def test_exercises_are_copied_once(folder, capsys):
    assert main(["exercises", "course", "--student", "ada"]) == 0
    files = sorted((folder / "course").glob("*.ipynb"))
    assert len(files) == len(LESSONS)
    files[0].write_text("mine")
    assert main(["exercises", "course"]) == 0
    assert files[0].read_text() == "mine"
    printed = capsys.readouterr().out
    assert f"{len(LESSONS)} notebooks in course exist, and were kept." in printed
    assert "go to course and run minisd exercises next." in printed
    assert main(["exercises", "course", "--student", "ben"]) == 2
    assert "course belongs to 'ada'" in capsys.readouterr().err
    assert (folder / "course" / "mine" / "student.txt").read_text() == "ada\n"


def test_next_goes_from_exercise_to_exercise(folder, capsys):
    first, second = all_exercises("07")[:2]
    assert main(["exercises", "next", "07"]) == 0
    assert f"0 of {len(all_exercises('07'))} exercises" in capsys.readouterr().out
    file = folder / f"{first.name}.py"
    main(["exercises", "next", "07"])
    assert "waits for your code" in capsys.readouterr().out
    file.write_text(f"{LIBRARIES}\n{answer_code(first, solved=True)}\n")
    main(["exercises", "next", "07"])
    printed = capsys.readouterr().out
    assert f"{first.name} is right" in printed
    assert second.title in printed
    assert (folder / f"{second.name}.py").exists()
    assert json.loads((folder / "mine" / "points.json").read_text()) == {first.name: first.points}


def test_a_file_that_stops_names_its_line(folder, capsys):
    first = all_exercises("07")[0]
    (folder / f"{first.name}.py").write_text("import torch\n\n1 / 0\n")
    assert main(["exercises", "next", "07"]) == 2
    assert f"{first.name}.py, line 3, stopped with ZeroDivisionError" in capsys.readouterr().err
    (folder / f"{first.name}.py").write_text("import torch\n\ndef f(:\n")
    assert main(["exercises", "next", "07"]) == 2
    assert f"{first.name}.py, line 3, stopped with SyntaxError" in capsys.readouterr().err
    (folder / f"{first.name}.py").write_text("import torch\n")
    assert main(["exercises", "next", "07"]) == 2
    assert f"has no {first.solution.__name__}" in capsys.readouterr().err


def test_a_file_without_an_end_is_stopped(folder, capsys, monkeypatch):
    monkeypatch.setattr("minisd.exercises.learner_folder.SECONDS", 1)
    (folder / "attend.py").write_text("while True:\n    pass\n")
    assert main(["exercises", "next", "attend"]) == 2
    assert "attend.py, line" in (printed := capsys.readouterr().err)
    assert "ran longer than 1 seconds. Look for a loop without an end." in printed


def test_next_takes_the_name_of_an_exercise(folder, capsys, monkeypatch):
    assert main(["exercises", "next", "ATTEND"]) == 0
    printed = capsys.readouterr().out
    assert "There is no folder mine here, so you start from the beginning." in printed
    assert "**" not in printed and "##" not in printed and "1 points" not in printed
    assert max(map(len, printed.split("\n"))) < 100
    assert (folder / "attend.py").read_text().startswith("# Attention")
    monkeypatch.chdir(folder / "mine")  # the folder is found from inside, too
    assert main(["exercises", "next", "7"]) == 0
    assert "There is no folder" not in capsys.readouterr().out
    assert not list((folder / "mine").glob("*.py"))


def test_a_wrong_name_gets_a_similar_one():
    with pytest.raises(ValueError, match="Did you mean cosine_schedule"):
        find_exercise("cosin_shedule")
    assert find_exercise("Attend").name == "attend"


def test_plain_text_keeps_code():
    text = "## Powers\n\n**Write** `2**e`.\n```\n# a ** b\n```\n- " + "word " * 30
    lines = plain_text(text).split("\n")
    assert lines[:6] == ["Powers", "", "Write `2**e`.", "```", "# a ** b", "```"]
    assert lines[7].startswith("  word") and max(map(len, lines)) < 80


def test_points_are_the_best_so_far(folder, capsys):
    exercise = find_exercise("attend")
    check("attend", exercise.solution)
    check("attend", lambda q, k, v, mask=None: v)
    next_exercise("07")
    assert f" {exercise.points} of " in capsys.readouterr().out


def test_a_damaged_file_of_points_says_what_to_do(folder, capsys):
    (folder / "mine").mkdir()
    (folder / "mine" / "points.json").write_text("[1")
    assert main(["exercises", "next"]) == 2
    assert "cannot be read. Delete it to start again." in capsys.readouterr().err


def test_the_id_decides_the_constants(folder, capsys, monkeypatch):
    texts = set()
    for student in ("ada", "grace", "alan", "edsger", "barbara"):
        monkeypatch.setenv("MINISD_STUDENT", student)
        question("cosine_schedule")
        texts.add(capsys.readouterr().out)
    assert len(texts) > 1


def test_wrong_words_are_refused(folder, capsys):
    for words in (
        ["exercises", "next", "07", "08"],
        ["exercises", "next", "77"],
        ["exercises", "hint"],
        ["exercises", "hint", "attend", "4"],
        ["exercises", "hint", "atend"],
        ["exercises", "hint", "attend", "abc"],
        ["exercises", "nxt"],
        ["exercises", "hints", "attend"],
        ["exercises", "7"],
        ["exercises", "next", "atend"],
        ["exercises", "next", "--solutions"],
        ["assignment", "77"],
    ):
        assert main(words) == 2, words
        assert capsys.readouterr().err
    with pytest.raises(ValueError, match="Choose 1, 2 or 3"):
        hint("attend", 0)
