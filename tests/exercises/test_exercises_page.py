"""docs/exercises.md is what the specs say."""

import json
from pathlib import Path

import pytest
from nbformat import NotebookNode

from docs.make.exercises_page import PAGE, SECONDS, page
from docs.make.lesson_exercises import PRIMER, TAG, exercise_cells, places, start_cells
from docs.make.notebooks import read, select_paths
from minisd.exercises.exercise import Exercise, all_exercises

LESSONS = [path.name.split("_")[0] for path in select_paths([])]


def test_the_page_is_up_to_date():
    written = PAGE.read_text(encoding="utf-8")
    assert written == page(), "docs/exercises.md is old: run python -m docs.make.exercises_page"


def test_each_check_was_measured_and_takes_less_than_five_seconds():
    seconds = json.loads(SECONDS.read_text(encoding="utf-8"))
    assert seconds.keys() == {one.name for one in all_exercises()}
    assert max(seconds.values()) < 5


def test_there_are_exercises_for_every_lesson():
    exercises = all_exercises()
    assert len(exercises) >= 40
    for lesson in LESSONS:
        mine = [one for one in exercises if one.lesson == lesson]
        assert any(one.constants for one in mine), f"lesson {lesson} has no constants by student"
        if lesson != PRIMER:
            assert 2 <= sum(one.in_lesson for one in mine) <= 4, lesson


def expected_cells(path: Path) -> list[NotebookNode]:
    """The cells of a lesson's exercises, from the specs, in the order of the lesson."""
    exercises = [one for one in all_exercises(path.name.split("_")[0]) if one.in_lesson]
    ordered = [one for one in places(read(path), exercises) if isinstance(one, Exercise)]
    return [*start_cells(ordered), *(cell for one in ordered for cell in exercise_cells(one))]


@pytest.mark.parametrize("path", select_paths([]), ids=lambda path: path.stem)
def test_each_lesson_has_its_exercises(path):
    lesson = path.name.split("_")[0]
    if lesson == PRIMER:
        return
    cells = [one for one in read(path).cells if TAG in one.metadata.get("tags", [])]
    old = "the exercises are old: run python -m docs.make.lesson_exercises"
    assert [one.source for one in cells] == [one.source for one in expected_cells(path)], old
    waiting = [one for one in cells if "waits for your code" in str(one.get("outputs", ""))]
    assert len(waiting) == sum(one.in_lesson for one in all_exercises(lesson))
