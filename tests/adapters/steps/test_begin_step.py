"""Steps of a network without a scheduler."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch

from catome_adapters import attach
from probes import CountingMerge
from stepping import SCHEDULE, counting_recipe, expected_calls
from zoo.noise import noise
from zoo.unet_pipelines import sd_pipeline
from zoo.unets import predict, sd_unet, small_unet


@torch.no_grad()
def test_bare_network_without_steps_recomputes_always_and_warns_once():
    unet, recipe = sd_unet(), counting_recipe()
    with attach(unet, recipe) as session:
        recipe.policy.watch(unet)
        with pytest.warns(UserWarning, match=r"session\.begin_step\(step, total\)") as caught:
            first = predict(unet, noise(2, 4, 16, 16))
        assert len(caught) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            predict(unet, noise(2, 4, 16, 16, seed=1))
            assert torch.equal(predict(unet, noise(2, 4, 16, 16)), first)
    assert recipe.policy.calls == [len(session.sites)] * 3


@torch.no_grad()
def run_steps(unet, steps, total=10) -> CountingMerge:
    """A network without a scheduler at these steps, one call each."""
    recipe = counting_recipe()
    with attach(unet, recipe) as session:
        recipe.policy.watch(unet)
        for step in steps:
            session.begin_step(step, total)
            predict(unet, noise(1, 4, 16, 16, seed=step))
    return recipe.policy


@pytest.mark.parametrize("total", [10, 5, 20])
def test_begin_step_drives_a_bare_network(total):
    assert run_steps(sd_unet(), range(total), total).recomputed == expected_calls(SCHEDULE, total)


@pytest.mark.filterwarnings("ignore:nothing merged in this run.*single step")
@pytest.mark.parametrize(
    ("steps", "recomputed"),
    [
        ([5, 6, 7], [0, 2]),  # begins in the middle
        ([0, 1, 2, 0, 1], [0, 3]),  # a new run before the last one ended
        ([0, 1, 1, 2], [0, 2]),  # the same step again is a new run
        ([0, 2, 4, 6, 8], [0]),  # every other step
        ([9, 0, 1], [0, 1]),
    ],
)
def test_first_step_of_a_run_recomputes(steps, recomputed):
    assert run_steps(sd_unet(), steps).recomputed == recomputed


@torch.no_grad()
def test_every_call_within_a_checkpoint_step_recomputes():
    """Guidance in two calls: they do not share pairs while they are being computed."""
    unet, recipe = sd_unet(), counting_recipe()
    with attach(unet, recipe) as session:
        recipe.policy.watch(unet)
        for step, _ in pairwise(range(4)):
            session.begin_step(step, 10)
            predict(unet, noise(1, 4, 16, 16))
            predict(unet, noise(1, 4, 16, 16, seed=1))
    assert recipe.policy.recomputed == [0, 1]


@pytest.mark.parametrize(
    ("step", "total", "message"),
    [
        (-1, 10, "step is -1; expected 0 to 9: steps count from 0"),
        (10, 10, "step is 10; expected 0 to 9: steps count from 0"),
        (1.5, 10, "step is 1.5; expected 0 to 9"),
        (True, 10, "step is True; expected 0 to 9"),
        ("0", 10, "step is '0'; expected 0 to 9"),
        (0, 10.0, "total is 10.0; expected the number of steps of the run, at least 1"),
        (0, 0, "total is 0; expected the number of steps of the run, at least 1"),
        (0, None, "total is None; expected the number of steps of the run, at least 1"),
    ],
)
def test_a_step_that_is_none_of_the_run_is_refused(step, total, message):
    with attach(small_unet(), "adaptive") as session, pytest.raises((TypeError, ValueError), match=f"^{message}"):
        session.begin_step(step, total)


def test_a_step_may_come_from_another_library():
    with attach(small_unet(), "adaptive") as session:
        session.begin_step(torch.tensor(2), np.int64(10))
        assert repr(session).endswith("step=2 of 10)")


@torch.no_grad()
def test_refused_step_changes_nothing():
    unet, recipe = sd_unet(), counting_recipe()
    with attach(unet, recipe) as session:
        recipe.policy.watch(unet)
        for step in (0, 1, 2):
            session.begin_step(step, 10)
            with pytest.raises(ValueError, match="count from 0"):
                session.begin_step(10, 10)
            predict(unet, noise(1, 4, 16, 16))
    assert recipe.policy.recomputed == [0]


@torch.no_grad()
def test_reset_begins_a_run_at_any_step():
    unet, recipe = sd_unet(), counting_recipe()
    with attach(unet, recipe) as session:
        recipe.policy.watch(unet)
        for step in (0, 1):
            session.begin_step(step, 10)
            predict(unet, noise(1, 4, 16, 16))
        session.reset()
        session.begin_step(2, 10)
        predict(unet, noise(1, 4, 16, 16))
    assert recipe.policy.recomputed == [0, 2]


@torch.no_grad()
@pytest.mark.parametrize("first", [0, 5])
def test_begin_step_goes_before_a_scheduler_in_the_same_loop(first):
    """The caller counts the steps that are drawn; in the middle of its timesteps, the scheduler would not."""
    pipe, recipe, total = sd_pipeline(), counting_recipe(), 10 - first
    with attach(pipe, recipe) as session:
        recipe.policy.watch(pipe.unet)
        for _ in range(2):
            image = noise(1, 4, 16, 16)
            pipe.scheduler.set_timesteps(10)
            for step, timestep in enumerate(pipe.scheduler.timesteps[first:]):
                session.begin_step(step, total)
                predicted = predict(pipe.unet, pipe.scheduler.scale_model_input(image, timestep))
                image = pipe.scheduler.step(predicted, timestep, image).prev_sample
            assert session.summary().steps == tuple(range(total))
    expected = expected_calls(SCHEDULE, total)
    assert recipe.policy.recomputed == [*expected, *(total + step for step in expected)]
