"""Entropy and the bootstrap, against what is known about them."""

from math import log2
from random import Random
from statistics import mean

import pytest

from minisd.teaching.counts import entropy, interval


@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_equally_frequent_names_have_the_largest_entropy(count):
    names = [str(i) for i in range(count)] * 4
    assert entropy(names) == pytest.approx(log2(count))
    assert entropy([*names, "0"]) <= log2(count)


def test_the_interval_of_a_mean_is_about_two_standard_errors_wide():
    dice = Random(1)
    values = [dice.gauss(5, 2) for _ in range(400)]
    low, high = interval(values, mean)
    assert low < mean(values) < high
    assert high - low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.15)
    assert interval(values, mean) == (low, high)


def test_the_interval_of_equal_values_is_one_point():
    assert interval(["noto"] * 64, entropy) == (0, 0)
