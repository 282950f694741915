"""docs/exercises.md is what the specs say."""

import json

from docs.make.exercises_page import PAGE, SECONDS, page
from minisd.config import NOTEBOOKS
from minisd.exercises.exercise import all_exercises


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
    for lesson in {path.name.split("_")[0] for path in NOTEBOOKS.glob("*.ipynb")}:
        mine = [one for one in exercises if one.lesson == lesson]
        assert any(one.constants for one in mine), f"lesson {lesson} has no constants by student"
        assert 2 <= sum(one.in_lesson for one in mine) <= 3, f"lesson {lesson} ends with too few"
