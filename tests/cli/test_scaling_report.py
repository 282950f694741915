"""docs/many_pictures.md shows what its program computes, and the model agrees with a real run."""

import json

import pytest

from docs.make import scaling_report as scaling
from docs.make.mini_report import fill_parts
from tests.helpers.tiny_models import SMALL, V1


def test_the_page_shows_what_the_program_computes():
    figures = json.loads(scaling.MEASURED.read_text(encoding="utf-8"))
    page = scaling.PAGE.read_text(encoding="utf-8")
    old = "docs/many_pictures.md is old: run python -m docs.make.scaling_report"
    assert fill_parts(page, scaling.computed_parts(figures)) == page, old


def test_two_processes_send_the_gradient_once_and_many_send_it_twice():
    assert scaling.seconds_to_send(1, 1e9, 1e9) == 0
    assert scaling.seconds_to_send(2, 1e9, 1e9) == pytest.approx(1e9 / scaling.NVLINK)
    assert scaling.seconds_to_send(1000, 1e9, 1e9) == pytest.approx(1.998)


def test_the_end_of_the_list_and_the_start_cost_time():
    one = scaling.seconds_per_picture()
    start = scaling.seconds_to_start(9, 3.0)  # two machines read 4 bytes per parameter
    assert start == pytest.approx(3 + 8 * scaling.parameters(scaling.SD15)["all"] / 10e9)
    assert scaling.seconds_to_draw(10, 9, 3.0) == pytest.approx(start + 2 * one)


def test_the_model_is_within_seven_percent_of_the_published_training():
    """With 8 GPUs it is given; from 16 to 128 GPUs it is a prediction."""
    for row in scaling.published_rows():
        measured, slow, fast = (float(number.replace(",", "")) for number in row[1:])
        assert slow <= fast
        assert slow == pytest.approx(measured, rel=0.07)
        assert fast == pytest.approx(measured, rel=0.04)


def test_measuring(monkeypatch):
    monkeypatch.setattr(scaling, "SD15", V1)
    monkeypatch.setattr(scaling, "MINI", SMALL)
    monkeypatch.setattr(scaling, "seconds_to_import", lambda: 1.5)
    measured = scaling.measure()
    assert measured.keys() == json.loads(scaling.MEASURED.read_text(encoding="utf-8")).keys()
    assert all(value >= 0 for value in measured.values())
