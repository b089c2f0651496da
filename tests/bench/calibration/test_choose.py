"""Choices of settings: the best ones by trying all, and what is drawn to reach a goal."""

from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catome_bench.calibration.choose import Choice, best_choices
from catome_bench.calibration.damage import Effect
from catome_bench.calibration.goal import Fidelity, Outcome, Speed, psnr_of
from catome_bench.calibration.rounds import MOST_ROUNDS, reach

# Whole numbers: their sums are exact in any order.
SETTING = st.tuples(st.integers(0, 9), st.integers(-2, 9))
GROUPS = st.lists(st.lists(SETTING, max_size=3), max_size=4)


def effects_of(groups: list[list[tuple[float, float]]]) -> list[Effect]:
    return [
        Effect(f"group {number}", str(index), "late", *one)
        for number, some in enumerate(groups)
        for index, one in enumerate(some)
    ]


def every_choice(groups: list[list[tuple[float, float]]]) -> list[tuple[float, float]]:
    """The error and the saving of every choice of at most one setting a group."""
    chosen = product(*[[(0, 0), *some] for some in groups])
    return [(sum(error for error, _ in one), sum(saved for _, saved in one)) for one in chosen]


@given(GROUPS)
def test_no_other_choice_saves_more_at_as_little_error(groups):
    tried, best = every_choice(groups), best_choices(effects_of(groups))
    assert all(one.error < other.error and one.saved < other.saved for one, other in pairwise(best))
    for budget in range(40):
        within = [one for one in best if one.error <= budget]
        assert within[-1].saved == max(saved for error, saved in tried if error <= budget)
    for needed in range(max(saved for _, saved in tried) + 1):
        enough = [one for one in best if one.saved >= needed]
        assert enough[0].error == min(error for error, saved in tried if saved >= needed)


@given(GROUPS)
def test_a_choice_is_the_sum_of_one_setting_for_each_of_its_groups(groups):
    for choice in best_choices(effects_of(groups)):
        assert len({one.group for one in choice.effects}) == len(choice.effects)
        assert choice.error == sum(one.error for one in choice.effects)
        assert choice.saved == sum(one.saved for one in choice.effects)


# Three groups: the choices save 0 to 3 seconds of ten, at errors of 0, 1, 3 and 7 times 1e-4.
CHOICES = best_choices(effects_of([[(1e-4, 1.0)], [(2e-4, 1.0)], [(4e-4, 1.0)]]))


class Truth:
    """Drawing, where errors and savings are so many times what was predicted."""

    def __init__(self, error: float = 1.0, saved: float = 1.0) -> None:
        self.error, self.saved = error, saved
        self.drawn: list[int] = []

    def __call__(self, choice: Choice) -> Outcome:
        self.drawn.append(len(choice.effects))
        return Outcome(choice, self.error * choice.error, 10 / (10 - self.saved * choice.saved))


# 35 dB is an error of 3.16e-4: room for two groups as predicted, for one if it is twice that, for three at 0.4 times.
@pytest.mark.parametrize(("off", "drawn"), [(1.0, [2]), (2.0, [2, 1]), (0.4, [2, 3])])
def test_the_fastest_choice_within_the_error_allows_for_how_far_its_prediction_was_off(off, drawn):
    truth = Truth(error=off)
    outcome = reach(Fidelity(35), CHOICES, truth)
    assert truth.drawn == drawn
    assert len(outcome.choice.effects) == drawn[-1]
    assert Fidelity(35).is_met(outcome) and psnr_of(outcome.error) >= 35


# 1.25x saves two seconds of ten.
@pytest.mark.parametrize(("off", "drawn"), [(1.0, [2]), (0.7, [2, 3]), (2.5, [2, 1])])
def test_the_closest_choice_that_is_fast_enough_allows_for_how_far_its_prediction_was_off(off, drawn):
    goal, truth = Speed(1.25, 10.0), Truth(saved=off)
    outcome = reach(goal, CHOICES, truth)
    assert truth.drawn == drawn
    assert len(outcome.choice.effects) == drawn[-1]
    assert goal.is_met(outcome) and outcome.speedup >= 1.25


@pytest.mark.parametrize(
    ("goal", "truth", "kept"),
    [
        (Fidelity(60), Truth(), 1),
        (Speed(2.0, 10.0), Truth(), 3),
        (Speed(1.25, 10.0), Truth(saved=-0.5), 2),
        (Speed(1.25, 10.0), Truth(saved=0.5), 3),
    ],
)
def test_where_nothing_reaches_the_goal_the_closest_is_kept(goal, truth, kept):
    outcome = reach(goal, CHOICES, truth)
    assert len(outcome.choice.effects) == kept
    assert not goal.is_met(outcome)


@pytest.mark.parametrize(
    ("floor", "errors", "order", "kept"),
    [(33.5, {2: 1.5e-4, 3: 9e-4}, [2, 3], 2), (35, {2: 9e-4, 1: 4e-4}, [2, 1], 1)],
    ids=["the first meets the goal", "none does"],
)
def test_of_several_choices_the_best_is_kept(floor, errors, order, kept):
    drawn: list[int] = []

    def draw(choice: Choice) -> Outcome:
        drawn.append(len(choice.effects))
        return Outcome(choice, errors[len(choice.effects)], 1.0)

    outcome = reach(Fidelity(floor), CHOICES, draw)
    assert drawn == order and len(outcome.choice.effects) == kept


def test_at_most_three_choices_are_drawn():
    many = best_choices(effects_of([[(1e-6, 1e-3)] for _ in range(40)]))
    truth = iter([2.0, 0.5, 2.0, 0.5])
    drawn: list[Choice] = []

    def draw(choice: Choice) -> Outcome:
        drawn.append(choice)
        return Outcome(choice, next(truth) * choice.error, 1.0)

    reach(Fidelity(47), many, draw)
    assert len(drawn) == MOST_ROUNDS
