"""Values of another type are refused by name, whether they come from JSON or from Python."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from catome_core import AdaptiveMerge, CheckpointSchedule, Match, TokenGrid, match_tokens, plan_merge

NO_NUMBERS = [True, "0.7", [0.7], {}]
NO_INTEGERS = [True, 1.5, 2.0, "2", {}]
NO_STEPS = [None, 3, "05", [0.5, 7.9], [True], ["1"], {"0": 1}]
NO_FLAGS = ["no", 1, 0, None, []]

WRONG = [
    *[("threshold", value, AdaptiveMerge) for value in [*NO_NUMBERS, None]],
    *[("capacity", value, AdaptiveMerge) for value in NO_NUMBERS],
    *[("radius", value, AdaptiveMerge) for value in NO_INTEGERS],
    *[("shared", value, AdaptiveMerge) for value in NO_FLAGS],
    *[("spare", value, AdaptiveMerge) for value in [True, None, ["pad"]]],
    *[("destination", value, AdaptiveMerge) for value in [0, None, ["random"]]],
    *[("of", value, lambda of: CheckpointSchedule((0,), of)) for value in [*NO_INTEGERS, 10.5, None]],
    *[("steps", value, lambda steps: CheckpointSchedule(steps, 10)) for value in NO_STEPS],
    *[("shape", value, TokenGrid) for value in [None, 4, "44", (4.0, 4), (True, 4), {4: 4, 5: 5}]],
    *[("stride", value, lambda stride: TokenGrid((4, 4), stride)) for value in [*NO_INTEGERS, None, (1.5, 2)]],
    *[("prefix", value, lambda prefix: TokenGrid((4, 4), prefix=prefix)) for value in [*NO_INTEGERS, None]],
    *[("interval", value, lambda interval: CheckpointSchedule.every(interval, 10)) for value in NO_INTEGERS],
    *[("total", value, CheckpointSchedule((0,), 10).rescaled) for value in NO_INTEGERS],
    *[("fractions", (value,), lambda parts: CheckpointSchedule.fractions(*parts)) for value in NO_NUMBERS],
    *[("threshold", value, lambda threshold: plan(threshold=threshold)) for value in NO_NUMBERS],
    *[("capacity", value, lambda capacity: plan(capacity=capacity)) for value in NO_NUMBERS],
    *[
        ("radius", value, lambda radius: match_tokens(torch.zeros(1, 16, 3), GRID, radius=radius))
        for value in [1.5, True]
    ],
]
GRID = TokenGrid((4, 4))


def plan(**changes):
    match = Match(torch.zeros(1, 12), torch.zeros(1, 12, dtype=torch.int64))
    return plan_merge(match, GRID, **{"threshold": 0.5} | changes)


@pytest.mark.parametrize(("name", "value", "make"), WRONG, ids=[f"{name}={value!r}" for name, value, _ in WRONG])
def test_a_value_of_another_type_is_refused_by_name(name, value, make):
    with pytest.raises((TypeError, ValueError)) as error:
        make(**{name: value}) if make is AdaptiveMerge else make(value)
    assert str(error.value).startswith(f"{name} is {value!r}; expected ")


@pytest.mark.parametrize("integer", [np.int64, np.uint8, torch.tensor])
def test_integers_of_other_libraries_are_taken_and_become_pythons(integer):
    grid = TokenGrid((integer(4), integer(6)), integer(2), integer(1))
    assert grid == TokenGrid((4, 6), 2, 1)
    policy = AdaptiveMerge(radius=integer(1))
    schedule = CheckpointSchedule([integer(0), integer(5)], integer(10))
    assert json.loads(json.dumps([asdict(policy), asdict(schedule), asdict(grid)])) == [
        asdict(AdaptiveMerge(radius=1)),
        {"steps": [0, 5], "of": 10},
        {"shape": [4, 6], "stride": [2, 2], "prefix": 1, "tokens": 25},
    ]


def test_floats_of_other_libraries_are_taken_and_become_pythons():
    policy = AdaptiveMerge(threshold=np.float64(0.5), capacity=np.float16(0.25))
    assert type(policy.threshold) is type(policy.capacity) is float
    assert policy == AdaptiveMerge(0.5, 0.25)
    assert json.dumps(asdict(policy)) == json.dumps(asdict(AdaptiveMerge(0.5, 0.25)))
    assert CheckpointSchedule(np.arange(0, 10, 5), 10) == CheckpointSchedule((0, 5), 10)


def test_a_threshold_that_tokens_without_a_cosine_would_pass_is_refused():
    """Tokens that are not finite score -1, so as never to merge."""
    with pytest.raises(ValueError, match="threshold is -2; expected a cosine similarity"):
        AdaptiveMerge(-2)
