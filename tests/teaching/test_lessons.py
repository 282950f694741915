"""minisd lessons copies the course to a folder of the student."""

import pytest

from minisd import cli
from minisd.cli import lessons


@pytest.fixture
def course(tmp_path, monkeypatch):
    source = tmp_path / "course"
    source.mkdir()
    for name in ("00_tour", "01_schedule"):
        (source / f"{name}.ipynb").write_text(f'{{"cells": "{name}"}}', encoding="utf-8")
    monkeypatch.setattr(lessons, "NOTEBOOKS", source)
    return source


def test_all_lessons_are_copied(course, tmp_path, capsys):
    folder = tmp_path / "my own" / "lessons"
    assert cli.main(["lessons", str(folder), "--no-open"]) == 0
    for notebook in course.iterdir():
        assert (folder / notebook.name).read_bytes() == notebook.read_bytes()
    assert "01_schedule.ipynb" in capsys.readouterr().out


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
