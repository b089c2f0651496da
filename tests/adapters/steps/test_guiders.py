"""Steps from the guider of a modular pipeline."""

from types import SimpleNamespace

import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance

from catome_adapters import attach
from catome_core import MergeWarning
from probes import CountingMerge
from running import TOTAL, make_recipe
from zoo.pipeline_parts import ddim
from zoo.transformers import ARCHITECTURES

pytestmark = pytest.mark.usefixtures("without_gradients")


@pytest.fixture
def model():
    return ARCHITECTURES["Flux"]


@pytest.fixture
def pipeline(model):
    return SimpleNamespace(transformer=model.network(), guider=ClassifierFreeGuidance())


def denoise(pipeline, model, calls: int = 1, steps=range(TOTAL)) -> None:
    """As the loops of modular pipelines do."""
    for step in steps:
        pipeline.guider.set_state(step=step, num_inference_steps=TOTAL, timestep=torch.tensor(step))
        for _ in range(calls):
            model.call(pipeline.transformer, seed=step)


@pytest.mark.parametrize("calls", [1, 2])
def test_a_guider_reports_the_steps(pipeline, model, calls):
    recipe = make_recipe(policy=CountingMerge)
    with attach(pipeline, recipe) as session:
        recipe.policy.watch(pipeline.transformer)
        denoise(pipeline, model, calls)
        assert session.summary().checkpoints == (0, 3)
        denoise(pipeline, model, calls)
        assert {row.step for row in session.summary().rows} == set(range(TOTAL))
    checkpoints = [call for step in (0, 3) for call in range(step * calls, (step + 1) * calls)]
    assert recipe.policy.recomputed == checkpoints + [calls * TOTAL + call for call in checkpoints]


def test_a_guider_that_replaces_another_is_observed(pipeline, model):
    with attach(pipeline, make_recipe()) as session:
        denoise(pipeline, model, steps=range(3))
        pipeline.guider = ClassifierFreeGuidance()
        denoise(pipeline, model, steps=range(3, TOTAL))
        assert session.summary().rows[-1].step == TOTAL - 1


def test_a_scheduler_goes_before_a_guider(pipeline, model):
    pipeline.scheduler = ddim()
    with attach(pipeline, make_recipe()) as session:
        pipeline.scheduler.set_timesteps(TOTAL)
        pipeline.guider.set_state(step=4, num_inference_steps=TOTAL, timestep=torch.tensor(0))
        model.call(pipeline.transformer)
        assert {row.step for row in session.summary().rows} == {0}


def test_the_caller_goes_before_a_guider(pipeline, model):
    with attach(pipeline, make_recipe()) as session:
        session.begin_step(2, TOTAL)
        pipeline.guider.set_state(step=4, num_inference_steps=TOTAL, timestep=torch.tensor(0))
        model.call(pipeline.transformer)
        assert {row.step for row in session.summary().rows} == {2}


def test_detach_restores_the_guider(pipeline):
    before = dict(vars(pipeline.guider))
    attach(pipeline, make_recipe()).detach()
    assert vars(pipeline.guider) == before


def test_a_scheduler_that_comes_after_attach_goes_before_a_guider(pipeline, model):
    recipe = make_recipe(policy=CountingMerge)
    pipeline.scheduler = None
    with attach(pipeline, recipe):
        denoise(pipeline, model, steps=range(1))
        pipeline.scheduler = ddim()
        denoise(pipeline, model, steps=range(1, 2))
        recipe.policy.watch(pipeline.transformer)
        pipeline.scheduler.set_timesteps(TOTAL)
        for step, timestep in enumerate(pipeline.scheduler.timesteps):
            pipeline.guider.set_state(step=step, num_inference_steps=TOTAL, timestep=timestep)
            output = model.call(pipeline.transformer, seed=step)
            pipeline.scheduler.step(output, timestep, output)
        assert recipe.policy.recomputed == [0, 3]
        pipeline.scheduler = None
        with pytest.warns(MergeWarning, match="the denoising step is unknown"):
            model.call(pipeline.transformer)
