"""minisd lessons copies the course to a folder of the student."""

import io
import json
import re
import xml.etree.ElementTree as ElementTree
import zipfile

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from minisd import cli
from minisd.cli import lessons
from minisd.config import NOTEBOOKS
from minisd.teaching import predict
from minisd.teaching.predict import Guess, read_predictions
from minisd.teaching.questions import all_questions
from minisd.teaching.quiz import gift, qti

OPTIONS = {"a": "one", "b": "two: `x = {1}`", "c": "three"}
SENTENCES = {"a": "Too few.", "b": "Just so.", "c": "Too many."}


def lesson(name):
    """A lesson with one question, run."""
    asked = Guess(f"How many in {name}?", OPTIONS)
    texts = [asked.words(), asked.verdict("b", **SENTENCES)]
    outputs = [new_output("display_data", {"text/markdown": text}) for text in texts]
    cells = [new_code_cell("1", outputs=[one], execution_count=1) for one in outputs]
    return new_notebook(cells=[new_markdown_cell(f"# {name}"), *cells])


@pytest.fixture
def course(tmp_path, monkeypatch):
    source = tmp_path / "course"
    source.mkdir()
    for name in ("00_tour", "01_schedule"):
        (source / f"{name}.ipynb").write_text(nbformat.writes(lesson(name)), encoding="utf-8")
    monkeypatch.setattr(lessons, "NOTEBOOKS", source)
    return source


def test_all_lessons_are_copied(course, tmp_path, capsys):
    folder = tmp_path / "my own" / "lessons"
    assert cli.main(["lessons", str(folder), "--no-open"]) == 0
    for notebook in course.iterdir():
        before, copied = nbformat.read(notebook, 4), nbformat.read(folder / notebook.name, 4)
        assert [cell.source for cell in copied.cells] == [cell.source for cell in before.cells]
        assert not any(cell.get("outputs") for cell in copied.cells)  # no answers to the questions
        assert not any(cell.get("execution_count") for cell in copied.cells)
    assert "01_schedule.ipynb" in capsys.readouterr().out


def test_outputs_are_copied_if_asked_for(course, tmp_path):
    folder = tmp_path / "lessons"
    assert cli.main(["lessons", str(folder), "--with-outputs", "--no-open"]) == 0
    for notebook in course.iterdir():
        assert (folder / notebook.name).read_bytes() == notebook.read_bytes()


def test_the_real_lessons_have_no_answers_in_their_copies(tmp_path):
    assert cli.main(["lessons", str(tmp_path), "--no-open"]) == 0
    for path in tmp_path.glob("*.ipynb"):
        notebook = nbformat.read(path, 4)
        nbformat.validate(notebook)
        assert not any(cell.get("outputs") for cell in notebook.cells)


def test_a_question_waits_for_a_choice_and_keeps_the_first_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINISD_MINE", str(tmp_path / "mine"))
    monkeypatch.setattr(predict, "is_person_there", lambda: True)
    asked = Guess("How many?", OPTIONS)
    asked.reveal("b", **SENTENCES)
    said = capsys.readouterr().out
    assert "Choose your answer first" in said and "Just so" not in said
    for letter in "ac":
        asked.choose(letter)
        asked.reveal("b", **SENTENCES)
    assert "Just so" in capsys.readouterr().out
    kept = {"How many?": {"chosen": "one", "answer": OPTIONS["b"]}}
    assert read_predictions(tmp_path / "mine") == kept


def test_nobody_waits_where_nobody_can_answer(monkeypatch):
    monkeypatch.setenv("MINISD_HEADLESS", "1")
    assert not predict.is_person_there()


def answer(folder, **choices):
    """Write what a student chose: the name of a lesson -> the chosen text."""
    folder.mkdir(parents=True)
    kept = {f"How many in {n}?": {"chosen": c, "answer": "two"} for n, c in choices.items()}
    (folder / "predictions.json").write_text(json.dumps(kept), encoding="utf-8")


def test_a_teacher_sees_what_students_chose(course, tmp_path, capsys):
    answer(tmp_path / "ada" / "mine", **{"00_tour": "two", "01_schedule": "one"})
    answer(tmp_path / "ben", **{"01_schedule": "two"})
    folders = [str(tmp_path / name) for name in ("ada", "ben")]
    assert cli.main(["lessons", "--answers", *folders]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "00  How many in 00_tour?",
        "    1 of 1 right: two",
        "01  How many in 01_schedule?",
        "    1 of 2 right: two",
        "    1 chose: one",
    ]
    assert cli.main(["lessons", "--answers", str(tmp_path / "ada"), "--port", "9"]) == 2
    assert cli.main(["lessons", "--answers", str(course)]) == 2
    assert "no question was answered there" in capsys.readouterr().err
    (tmp_path / "ben" / "predictions.json").write_text("[", encoding="utf-8")
    assert cli.main(["lessons", "--answers", folders[1]]) == 2
    assert "Delete it to start again" in capsys.readouterr().err


def test_a_student_sees_the_own_answers(course, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MINISD_MINE", raising=False)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["lessons", "--answers"]) == 2
    assert "Name the folder of a student" in capsys.readouterr().err
    answer(tmp_path / "minisd-lessons" / "mine", **{"00_tour": "two"})
    assert cli.main(["lessons", "--answers"]) == 0
    assert "1 of 1 right" in capsys.readouterr().out


def test_the_quiz_holds_every_question(course, tmp_path):
    assert cli.main(["lessons", "--quiz", str(tmp_path)]) == 0
    moodle = (tmp_path / "quiz.gift").read_text(encoding="utf-8")
    assert moodle.startswith(
        "::Lesson 00, question 1::[html]How many in 00_tour?{\n"
        "\t~one#Too few.\n"
        "\t=two\\: <code>x \\= \\{1\\}</code>#Just so.\n"
        "\t~three#Too many.\n}\n"
    )
    archive = zipfile.ZipFile(tmp_path / "quiz-qti.zip")
    manifest = ElementTree.fromstring(archive.read("imsmanifest.xml"))
    (file,) = (one.get("href") for one in manifest.iter() if one.tag.endswith("}file"))
    items = ElementTree.fromstring(archive.read(file)).findall(".//{*}item")
    assert [item.get("title") for item in items] == [
        "Lesson 00, question 1",
        "Lesson 01, question 1",
    ]
    (scored,) = (one for one in items[0].iter() if one.findall("./{*}setvar"))
    assert scored.findtext(".//{*}varequal") == "b"
    labels = [one.get("ident") for one in items[0].findall(".//{*}response_label")]
    texts = [one.text for one in items[0].findall(".//{*}mattext")]
    assert labels == ["a", "b", "c"]
    assert texts[:3] == ["How many in 00_tour?", "one", "two: <code>x = {1}</code>"]
    assert texts[4:] == ["Too few.", "Just so.", "Too many."]


def test_the_quiz_of_the_real_lessons():
    questions = all_questions(NOTEBOOKS)
    assert len(questions) >= 50
    for question in questions:
        assert question.answer in question.options
        assert question.sentences.keys() == question.options.keys()
    text = gift(questions)
    assert len(re.findall(r"^\t=", text, flags=re.MULTILINE)) == len(questions)
    assert qti(questions) == qti(questions)
    assert zipfile.ZipFile(io.BytesIO(qti(questions))).testzip() is None


def test_a_changed_lesson_is_never_overwritten_and_a_lost_one_comes_back(course, tmp_path, capsys):
    folder = tmp_path / "lessons"
    cli.main(["lessons", str(folder), "--no-open"])
    (folder / "00_tour.ipynb").write_text("my answers", encoding="utf-8")
    (folder / "01_schedule.ipynb").unlink()
    capsys.readouterr()
    assert cli.main(["lessons", str(folder), "--no-open"]) == 0
    assert (folder / "00_tour.ipynb").read_text(encoding="utf-8") == "my answers"
    assert (folder / "01_schedule.ipynb").exists()
    assert "was kept" in capsys.readouterr().out
    (folder / "00_tour.ipynb").write_bytes((course / "00_tour.ipynb").read_bytes())
    cli.main(["lessons", str(folder), "--no-open"])
    assert "already" in capsys.readouterr().out


def test_jupyter_opens_the_folder_or_one_sentence_says_what_is_missing(
    course, tmp_path, monkeypatch, capsys
):
    ran = []
    monkeypatch.setattr(lessons.subprocess, "run", lambda command, check: ran.append(command))
    monkeypatch.setattr(lessons, "find_spec", lambda name: name == "notebook" or None)
    assert cli.main(["lessons", str(tmp_path / "a")]) == 0
    assert ran[0][1:] == ["-m", "notebook", str(tmp_path / "a")]
    monkeypatch.setattr(lessons, "find_spec", lambda name: None)
    assert cli.main(["lessons", str(tmp_path / "b")]) == 2
    assert "pip install jupyter" in capsys.readouterr().err
    assert (tmp_path / "b" / "00_tour.ipynb").exists()


def test_what_cannot_be_done_is_said_in_a_sentence(course, tmp_path, capsys):
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert cli.main(["lessons", str(tmp_path / "file"), "--no-open"]) == 2
    assert "cannot be made" in capsys.readouterr().err
    for notebook in course.iterdir():
        notebook.unlink()
    assert cli.main(["lessons", str(tmp_path / "a"), "--no-open"]) == 2
    assert "no notebooks" in capsys.readouterr().err
