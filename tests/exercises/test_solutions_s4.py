"""The solutions of lessons 07, 09 and 10 compute what the core computes."""

import numpy as np
import pytest
import torch

import minisd
from minisd import attention
from minisd.exercises.check import draw_cat, draw_with
from minisd.exercises.exercise import all_exercises, draw_weights, find_exercise, normal

LESSONS = ("07", "09", "10")
MINE = [one for lesson in LESSONS for one in all_exercises(lesson)]


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def solution_of(name, student="ada"):
    exercise = find_exercise(name)
    return exercise.with_constants(exercise.solution, student)


def assert_equal(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def same_picture(one, other):
    return np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1


@pytest.fixture(scope="module")
def cat():
    """The picture of the exercises, with the core's parts."""
    return draw_cat(minisd.load("mini"))


REPLACING = [one for one in MINE if one.replaces]


@pytest.mark.parametrize("exercise", REPLACING, ids=lambda one: one.name)
def test_the_picture_with_the_solution_is_ours(exercise, cat):
    assert exercise.draw is draw_cat
    assert same_picture(draw_with(exercise, exercise.solution), cat)


@pytest.mark.parametrize("name", ["one_head", "split_heads", "join_heads"])
def test_the_picture_with_a_small_step_is_ours(name, cat):
    exercise = find_exercise(name)
    assert same_picture(draw_with(exercise, exercise.solution), cat)


# ---- lesson 07 -------------------------------------------------------------------------------


def core_attend(q, k, v):
    return attention.attend(q, k, v, tap=torch.nn.Identity())


def test_one_head_is_a_head_of_attend(generator):
    q, k, v = normal(generator, 5, 4), *normal(generator, 2, 7, 4)
    weights, answers = solution_of("one_head")(q, k, v)
    assert_equal(answers, core_attend(q[None, None], k[None, None], v[None, None])[0, 0])
    assert_equal(weights[2], solution_of("query_weights")(q[2], k))


def test_split_and_join_undo_each_other(generator):
    x = normal(generator, 2, 5, 12)
    assert_equal(solution_of("join_heads")(solution_of("split_heads")(x, 3)), x)


@pytest.mark.parametrize(
    ("name", "core", "init", "shapes"),
    [
        ("attention", "Attention", (12, 10, 3), [(2, 5, 12), (2, 7, 10)]),
        ("geglu", "GEGLU", (12, 3), [(2, 5, 12)]),
        ("spatial_transformer", "SpatialTransformer", (12, 10, 3, 4), [(2, 12, 3, 5), (2, 7, 10)]),
    ],
)
def test_the_class_with_the_same_weights_is_the_cores(name, core, init, shapes, generator):
    ours = getattr(attention, core)(*init).double()
    ours.load_state_dict(draw_weights(generator, ours))
    theirs = solution_of(name)(*init).double()
    theirs.load_state_dict(ours.state_dict())
    inputs = [normal(generator, *shape) for shape in shapes]
    assert_equal(theirs(*inputs), ours(*inputs))


def test_without_sink_and_temperatures_sink_attend_is_attend(generator):
    q, k, v = normal(generator, 2, 5, 3, 4), *normal(generator, 2, 2, 7, 3, 4)
    plain = find_exercise("sink_attend").solution(q, k, v, temperatures=(1, 1, 1), sink=0)
    by_head = [each.transpose(1, 2) for each in (q, k, v)]
    assert_equal(plain, core_attend(*by_head).transpose(1, 2))
