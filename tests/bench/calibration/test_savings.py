"""What is saved, and that it does not depend on what else the machine does."""

import random

import pytest

from catome_bench.calibration.savings import seconds_saved, slowness, usual_seconds

USUAL = {"up": 4.0, "mid": 2.0, "down": 1.0}


def picture(up: dict[str, list[float]], slow: float = 1.0) -> dict[str, dict[str, list[float]]]:
    """Tokens merge in the group `up`; everything takes so many times as long."""
    calls = {"up": up, "mid": {"unmerged": [2.0] * 10}, "down": {"unmerged": [1.0] * 10}}
    return {
        group: {kind: [slow * one for one in seconds] for kind, seconds in kinds.items()}
        for group, kinds in calls.items()
    }


def test_saved_is_the_first_decile_of_each_kind_over_all_runs_for_the_calls_of_one():
    """Neither the fastest of twelve nor the slowest counts."""
    late = picture({"checkpoint": [5.0], "reuse": [1.0, 90.0], "unmerged": [4.0, 4.0, 50.0]})
    whole = picture({"checkpoint": [5.0], "reuse": [2.0] * 10})
    unmerged = picture({"unmerged": [4.0] * 6})
    runs = [whole, late]
    assert usual_seconds([unmerged, *runs]) == USUAL
    assert seconds_saved("up", late, runs, USUAL) == (4 - 5) + 2 * (4 - 2)
    assert seconds_saved("up", whole, runs, USUAL) == (4 - 5) + 10 * (4 - 2)
    assert seconds_saved("up", unmerged, runs, USUAL) == 0


def test_a_network_that_the_call_never_runs_says_nothing_of_the_machine():
    one = picture({"reuse": [2.0] * 10}, 3.0) | {"second": {}}
    assert slowness(one, "up", USUAL) == 3.0


@pytest.mark.parametrize("slow", [0.5, 1.0, 3.0])
def test_a_machine_that_is_slow_while_a_setting_is_measured_changes_nothing(slow):
    one = picture({"reuse": [2.0] * 10}, slow)
    assert slowness(one, "up", USUAL) == slow
    assert seconds_saved("up", one, [one], USUAL) == 10 * (4 - 2)
    other = picture({"reuse": [2.0] * 4, "unmerged": [4.0] * 6})
    assert seconds_saved("up", other, [one, other], USUAL) == 4 * (4 - 2)


def test_a_slow_unmerged_picture_does_not_count_where_others_were_undisturbed():
    merged_elsewhere = [{"up": {"unmerged": [4.0] * 10}, "mid": {"reuse": [1.0] * 10}}] * 3
    slow = {"up": {"unmerged": [40.0] * 10}, "mid": {"unmerged": [20.0] * 10}}
    assert usual_seconds([slow, *merged_elsewhere])["up"] == 4.0


def test_calls_that_are_disturbed_one_by_one_do_not_count():
    chance = random.Random(0)
    calls = [2.0 + (chance.random() < 0.5) * 5 for _ in range(40)]
    one = picture({"reuse": calls})
    assert seconds_saved("up", one, [one], USUAL) == 40 * (4 - 2)


def test_a_group_without_others_is_taken_as_it_was_timed():
    one = {"up": {"reuse": [3.0] * 4}}
    assert slowness(one, "up", {"up": 4.0}) == 1.0
    assert seconds_saved("up", one, [one], {"up": 4.0}) == 4 * (4 - 3)
