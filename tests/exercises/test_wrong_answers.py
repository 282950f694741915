"""Forty wrong answers by somebody who had seen the questions only: none passes, most are named.

The questions were those of the student "ada".
"""

import json
from functools import cache
from pathlib import Path

import pytest

from minisd.exercises.exercise import find_exercise
from minisd.exercises.judge import judge

FILE = Path(__file__).with_name("wrong_answers.jsonl")
WRONG = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]


@cache
def verdict(number):
    one = WRONG[number]
    exercise, space = find_exercise(one["exercise"]), {"__name__": "wrong"}
    exec(one["code"], space)
    return judge(exercise, space[exercise.solution.__name__], "ada")


@pytest.mark.parametrize("number", range(len(WRONG)), ids=[one["exercise"] for one in WRONG])
def test_a_wrong_answer_does_not_pass(number):
    assert not verdict(number).has_passed, WRONG[number]["mistake"]
    assert verdict(number).begun


def test_at_least_half_of_the_mistakes_are_named():
    assert len(WRONG) == 40
    named = [one for one in range(len(WRONG)) if verdict(one).mistake]
    assert len(named) >= 20
