"""Schedulers that two pipelines share, that are replaced or wrapped."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from diffusers import HeunDiscreteScheduler, LMSDiscreteScheduler

from catome_adapters import attach
from catome_bench.models.pipeline import ClassConditionalPipeline
from catome_core import CheckpointSchedule
from running import TOTAL, make_recipe
from stepping import SCHEDULE, counting_recipe, expected_calls
from zoo.pipeline_parts import ddim, quiet
from zoo.transformers import ARCHITECTURES
from zoo.unet_pipelines import class_pipeline, draw

# diffusers hands torch tensors to NumPy functions.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


def test_two_pipelines_may_share_a_scheduler():
    scheduler = ddim()
    before = set(vars(scheduler))
    pipes = class_pipeline(scheduler), class_pipeline(scheduler)
    alone = [with_session(pipe) for pipe in pipes]
    sessions = [attach(pipe, counting_recipe()) for pipe in pipes]
    assert all(torch.equal(draw(pipe), image) for pipe, image in zip(pipes, alone, strict=True))
    sessions[0].detach()
    assert torch.equal(draw(pipes[1]), alone[1])
    assert sessions[1].summary().checkpoints == tuple(expected_calls(SCHEDULE, 5))
    sessions[1].detach()
    assert set(vars(scheduler)) == before


def with_session(pipe):
    with attach(pipe, counting_recipe()):
        return draw(pipe)


def test_summary_of_a_pipeline_survives_the_run_of_another_with_its_scheduler():
    scheduler = ddim()
    first, second = class_pipeline(scheduler), class_pipeline(scheduler)
    with attach(first) as session, attach(second):
        draw(first)
        summary = session.summary()
        draw(second)
        assert session.summary() == summary


def test_scheduler_replaced_after_attach_is_followed():
    pipe, recipe = class_pipeline(), counting_recipe()
    old, before = pipe.scheduler, set(vars(pipe.scheduler))
    with attach(pipe, recipe) as session:
        draw(pipe)
        pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
        untouched = set(vars(pipe.scheduler))
        recipe.policy.watch(pipe.unet)
        first = draw(pipe, steps=10)
        assert torch.equal(draw(pipe, steps=10), first)
        assert set(vars(old)) == before
        assert session.summary().checkpoints == tuple(expected_calls(SCHEDULE, 19))
    assert recipe.policy.recomputed == expected_calls(SCHEDULE, 19) + [
        19 + step for step in expected_calls(SCHEDULE, 19)
    ]
    # The scheduler sets attributes of its own in a run.
    assert not {"step", "set_timesteps", "catome_clock"} & set(vars(pipe.scheduler))
    assert untouched <= set(vars(pipe.scheduler))


def test_network_of_a_finished_pipeline_is_never_stale_under_another():
    pipe, recipe = class_pipeline(), counting_recipe()
    other = quiet(ClassConditionalPipeline(pipe.unet, LMSDiscreteScheduler(), pipe.config.class_names))
    with attach(pipe, recipe):
        draw(pipe)
        recipe.policy.watch(pipe.unet)
        with pytest.warns(UserWarning, match="begin_step"):
            draw(other)
    assert recipe.policy.recomputed == list(range(5))


def test_scheduler_whose_state_is_kept_and_put_back_stays_observed():
    """As a panorama does between its views."""
    pipe = class_pipeline()
    before = set(vars(pipe.scheduler))
    expected = with_session(pipe)
    with attach(pipe, counting_recipe()) as session:
        vars(pipe.scheduler).update(copy.deepcopy(vars(pipe.scheduler)))
        assert torch.equal(draw(pipe), expected)
        assert session.summary().checkpoints == tuple(expected_calls(SCHEDULE, 5))
        assert "catome_scheduler" not in vars(copy.deepcopy(pipe.scheduler))
    assert set(vars(pipe.scheduler)) == before


@torch.no_grad()
def test_attached_in_the_middle_of_a_run_it_knows_the_steps_from_the_next_one_on():
    model, network = ARCHITECTURES["Flux"], ARCHITECTURES["Flux"].network()
    pipeline = SimpleNamespace(transformer=network, scheduler=ddim())
    pipeline.scheduler.set_timesteps(TOTAL)
    steps = []
    with attach(pipeline, make_recipe(schedule=CheckpointSchedule.every(1, TOTAL))) as session:
        for timestep in pipeline.scheduler.timesteps[1:]:
            steps.append(session.step)
            output = model.call(network)
            pipeline.scheduler.step(output, timestep, output)
        assert session.summary().checkpoints == tuple(range(2, TOTAL))
    assert steps == [None, *range(2, TOTAL)]


def test_wrapper_that_was_there_before_is_there_afterwards():
    pipe = class_pipeline()
    pipe.scheduler.step = wrapper = partial(pipe.scheduler.step)
    with attach(pipe):
        draw(pipe)
    assert vars(pipe.scheduler).get("step") is wrapper


@torch.no_grad()
def test_a_step_that_a_pipeline_ends_twice_is_one_step():
    """As the pipelines of Cosmos do, for the prediction and then for the latents."""
    model, anchors = ARCHITECTURES["Flux"], {}
    pipeline = SimpleNamespace(transformer=model.network())
    for ends in (1, 2):
        pipeline.scheduler = ddim()
        with attach(
            pipeline, make_recipe(destination="rotate", schedule=CheckpointSchedule.every(1, TOTAL))
        ) as session:
            pipeline.scheduler.set_timesteps(TOTAL)
            anchors[ends] = []
            for timestep in pipeline.scheduler.timesteps:
                output = model.call(pipeline.transformer)
                anchors[ends] += [plan.anchor for plan in session.plans().values()]
                for _ in range(ends):
                    pipeline.scheduler.step(output, timestep, output)
            assert len(session.summary().checkpoints) == TOTAL
    assert len(anchors[1]) > TOTAL and all(map(torch.equal, anchors[1], anchors[2]))
