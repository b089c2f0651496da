"""Which steps recompute."""

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catome_core import PAPER_SCHEDULES, CheckpointSchedule

totals = st.integers(1, 1000)


@st.composite
def schedules(draw) -> CheckpointSchedule:
    of = draw(totals)
    return CheckpointSchedule(tuple(draw(st.lists(st.integers(0, of - 1), max_size=12))), of)


def checkpoints(schedule: CheckpointSchedule, total: int | None = None) -> list[int]:
    return [step for step in range(total or schedule.of) if schedule.is_checkpoint(step, total)]


@given(st.data(), totals)
def test_the_listed_steps_and_the_first_are_checkpoints(data, of):
    steps = data.draw(st.lists(st.integers(0, of - 1), max_size=12))
    schedule = CheckpointSchedule(tuple(steps), of)
    assert checkpoints(schedule) == sorted({0, *steps})
    assert list(schedule.steps) == sorted(set(schedule.steps))


@given(schedules(), totals)
def test_another_number_of_steps_rescales(schedule, total):
    expected = sorted({0, *(step * total // schedule.of for step in schedule.steps)})
    if 1 < schedule.of == len(schedule.steps):
        expected = list(range(total))
    assert checkpoints(schedule, total) == expected
    rescaled = schedule.rescaled(total)
    assert rescaled.of == total
    assert checkpoints(rescaled) == expected


@given(schedules())
def test_the_same_number_of_steps_changes_nothing(schedule):
    assert schedule.rescaled(schedule.of) == schedule
    assert checkpoints(schedule, schedule.of) == checkpoints(schedule)


@given(st.integers(1, 60), totals)
def test_every(interval, total):
    assert checkpoints(CheckpointSchedule.every(interval, total)) == list(range(0, total, interval))


@given(st.integers(2, 60), totals)
def test_every_step_stays_every_step(of, total):
    """Samplers that call the network more often than they were asked for, such as PNDM, make longer runs."""
    assert checkpoints(CheckpointSchedule.every(1, of), total) == list(range(total))


@given(st.data(), totals)
def test_fractions_fall_on_their_step(data, total):
    steps = data.draw(st.lists(st.integers(0, total - 1), max_size=5))
    schedule = CheckpointSchedule.fractions(*(step / total for step in steps))
    assert checkpoints(schedule, total) == sorted({0, *steps})


def test_the_first_step_of_a_short_run_is_a_checkpoint():
    assert checkpoints(CheckpointSchedule((49,), of=50), 1) == [0]


def test_config_3_in_twenty_steps():
    assert checkpoints(PAPER_SCHEDULES["config_3"], 20) == [0, 3, 4, 5, 8, 10, 12, 14, 18, 19]


def test_paper_schedules():
    names = ["config_1", "config_2", "config_3", "config_4", "config_adaptive", "config_five"]
    assert sorted(PAPER_SCHEDULES) == names
    assert {schedule.of for schedule in PAPER_SCHEDULES.values()} == {50}
    assert checkpoints(PAPER_SCHEDULES["config_five"]) == list(range(0, 50, 5))
    with pytest.raises(TypeError):
        PAPER_SCHEDULES["config_3"] = CheckpointSchedule((0,), of=1)  # type: ignore[index]


def test_a_schedule_is_a_value():
    schedule = CheckpointSchedule((30, 10, 10), of=50)
    assert schedule == CheckpointSchedule((10, 30), of=50)
    assert len({schedule, CheckpointSchedule((10, 30), of=50)}) == 1
    with pytest.raises(FrozenInstanceError):
        schedule.of = 3  # type: ignore[misc]
