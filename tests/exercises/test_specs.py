"""Every exercise: the solution passes, the stub does not, each named mistake is named."""

import inspect

import pytest
from torch import nn

from minisd.config import NOTEBOOKS
from minisd.exercises.check import describe_verdict
from minisd.exercises.exercise import all_exercises, find_exercise
from minisd.exercises.judge import Failure, judge
from minisd.exercises.notebooks import LIBRARIES, lesson_file, signature_source

EXERCISES = all_exercises()
each_exercise = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda one: one.name)


def build_stub(exercise):
    """What the student's notebook holds before the student has written anything."""
    space: dict = {}
    exec(f"{LIBRARIES}\n{exercise.given}\n{signature_source(exercise)}", space)
    return space[exercise.solution.__name__]


@each_exercise
@pytest.mark.parametrize("student", ["", "ada"])
def test_the_solution_passes(exercise, student):
    answer = exercise.with_constants(exercise.solution, student)
    for seed in (0, 1):
        verdict = judge(exercise, answer, student, seed)
        assert verdict.has_passed, describe_verdict(verdict)
        assert verdict.points == exercise.points


@each_exercise
def test_the_untouched_stub_gets_no_points(exercise):
    verdict = judge(exercise, build_stub(exercise))
    assert verdict.points == 0
    assert not verdict.begun
    assert "waits for your code" in describe_verdict(verdict)


@each_exercise
def test_each_mistake_fails_with_its_own_sentence(exercise):
    assert len(exercise.mistakes) >= 2
    for sentence, wrong in exercise.mistakes.items():
        for student in ("", "ada") if exercise.constants else ("",):
            verdict = judge(exercise, exercise.with_constants(wrong, student), student)
            assert not verdict.has_passed
            assert verdict.mistake == sentence


@each_exercise
def test_the_solution_never_fails_on_its_own(exercise):
    """A stage that raises an error in the solution would compare nothing."""
    from minisd.exercises.judge import draw_inputs, run_all

    results = run_all(exercise, exercise.solution, draw_inputs(exercise, 0), "")
    assert not any(isinstance(one, Failure) or one is None for one in results)


@each_exercise
def test_the_spec_is_complete(exercise):
    assert 1 <= exercise.difficulty <= 4
    assert 1 <= exercise.minutes <= 90
    assert len(set(exercise.hints)) == 3
    assert exercise.lesson in {path.name.split("_")[0] for path in NOTEBOOKS.glob("*.ipynb")}
    names = [one.name for one in EXERCISES]
    for needed in exercise.needs:
        assert names.index(needed) < names.index(exercise.name)
    assert len(exercise.stages) >= 2 or exercise.lesson == "0b"
    assert inspect.getdoc(exercise.solution)
    assert exercise.question_for("ada")


def test_two_students_get_different_questions():
    for exercise in EXERCISES:
        if exercise.constants:
            assert len({exercise.question_for(f"student {i}") for i in range(20)}) > 1


def test_no_lesson_asks_for_one_name_twice():
    """A notebook holds all exercises of a lesson, so their functions need different names."""
    pairs = [(one.lesson, one.solution.__name__) for one in EXERCISES]
    assert len(pairs) == len(set(pairs))
    places = [(one.lesson, one.place) for one in EXERCISES]
    assert len(places) == len(set(places))


def test_the_number_of_a_lesson_may_have_a_letter():
    lessons = list(dict.fromkeys(one.lesson for one in EXERCISES))
    assert lessons[:3] == ["00", "0b", "01"]
    assert lessons[lessons.index("08") : lessons.index("09")] == ["08", "08b"]
    assert all_exercises("8b") == all_exercises("08b") != []
    assert lesson_file("8b") == "08b_unet_sizes_exercises"
    assert lesson_file("7") == "07_attention_exercises"


def test_a_parameter_of_another_name_is_named():
    """The class is no stub: the message says which name is missing."""

    class Attention(nn.Module):
        def __init__(self, width, context_dim, heads):
            super().__init__()
            self.query = nn.Linear(width, width)

    verdict = judge(find_exercise("attention"), Attention)
    assert verdict.begun
    assert "These are missing: to_k.weight, " in describe_verdict(verdict)
