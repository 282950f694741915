"""install_parts() puts parts into the package, and takes all of them out again."""

import sys
from types import ModuleType

import numpy as np

import minisd
from minisd import sampling, schedule, unet
from minisd.exercises.check import draw_cat, draw_with
from minisd.exercises.exercise import find_exercise
from minisd.exercises.install import install_parts


def test_a_module_that_is_first_imported_inside_the_block_gets_the_old_parts_back(monkeypatch):
    old = unet.UNet
    late = ModuleType("minisd.late")
    with install_parts({"minisd.unet.UNet": dict}):
        monkeypatch.setitem(sys.modules, "minisd.late", late)
        late.UNet = unet.UNet
        assert late.UNet is dict
    assert late.UNet is unet.UNet is old


def test_a_method_is_also_replaced_in_the_tables_that_hold_it():
    old = schedule.Schedule.leading
    with install_parts({"minisd.schedule.Schedule.leading": len}):
        assert schedule.Schedule.leading is len
        assert sampling.SPACINGS["leading"] is len
    assert schedule.Schedule.leading is sampling.SPACINGS["leading"] is old


def test_a_picture_is_drawn_with_an_answer():
    """The solution of attend computes what the core's fused kernel computes."""
    exercise = find_exercise("attend")
    picture = np.array(draw_with(exercise, exercise.solution), float)
    ours = np.array(draw_cat(minisd.load("mini")), float)
    assert abs(picture - ours).max() <= 1
