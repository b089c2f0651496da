"""Medians over pictures, and what JSON has of them."""

import math

import pytest

from catome_bench.measure.spread import Spread, for_json


def test_of_twenty_one_is_below_the_worst():
    assert Spread.of(list(range(20))).worst == 1
    assert Spread.of_distances(list(range(20))).worst == 18


def test_distances_are_the_same_spread_with_the_highest_as_the_worst():
    low, high = (Spread.of([0.1, 0.2, 0.9]), Spread.of_distances([0.1, 0.2, 0.9]))
    assert (low.median, low.interval) == (high.median, high.interval)
    assert (low.worst, high.worst) == (0.1, 0.9)


def test_equal_pictures_are_none_and_broken_ones_an_error():
    assert Spread.of([math.inf, 30.0, math.inf]).to_dict() == {"median": None, "worst": 30.0, "interval": [30.0, None]}
    with pytest.raises(ValueError, match="a measure is NaN; expected pictures whose values are finite"):
        for_json(math.nan)
