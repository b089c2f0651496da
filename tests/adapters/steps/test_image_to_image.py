"""Runs that begin in the middle of the schedule."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    CogVideoXDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
)

from catome_adapters import attach
from catome_core import MergeWarning
from stepping import SCHEDULE, counting_recipe, expected_calls
from tiers import tiered
from zoo.noise import noise
from zoo.pipeline_parts import ddim
from zoo.unet_pipelines import redraw, sd_pipeline
from zoo.unets import predict, sd_unet

# diffusers hands torch tensors to NumPy functions.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

IMAGE_TO_IMAGE = {
    "ddim": ddim,
    "euler": partial(EulerDiscreteScheduler, steps_offset=1),
    "dpm++": partial(DPMSolverMultistepScheduler, steps_offset=1),
    "pndm": partial(PNDMScheduler, skip_prk_steps=True, steps_offset=1),
    "heun": partial(HeunDiscreteScheduler, steps_offset=1),
}


@pytest.mark.parametrize("scheduler", tiered(IMAGE_TO_IMAGE, [*IMAGE_TO_IMAGE][:2]))
def test_image_to_image_begins_in_the_middle(scheduler):
    pipe, recipe = sd_pipeline(StableDiffusionImg2ImgPipeline, IMAGE_TO_IMAGE[scheduler]()), counting_recipe()
    with attach(pipe, recipe) as session:
        recipe.policy.watch(pipe.unet)
        first = redraw(pipe)
        total, calls = len(pipe.scheduler.timesteps), len(recipe.policy.calls)
        assert 0 < calls < total
        assert recipe.policy.recomputed == expected_calls(SCHEDULE, total, total - calls)
        assert {row.step for row in session.summary().rows} == set(range(total - calls, total))
        assert torch.equal(redraw(pipe), first)


@pytest.mark.parametrize("scheduler", ["euler", "dpm++"])
def test_first_run_with_another_scheduler_is_as_every_run_with_it(scheduler):
    pipe = sd_pipeline(StableDiffusionImg2ImgPipeline)
    with attach(pipe, replace(counting_recipe(), during=(0.3, 1.0))):
        redraw(pipe)
        pipe.scheduler = IMAGE_TO_IMAGE[scheduler]()
        first = redraw(pipe)
        assert torch.equal(redraw(pipe), first)


@pytest.mark.parametrize("scheduler", tiered(IMAGE_TO_IMAGE, [*IMAGE_TO_IMAGE][:1]))
def test_first_part_of_the_schedule_is_over_when_image_to_image_begins(scheduler):
    pipe = sd_pipeline(StableDiffusionImg2ImgPipeline, IMAGE_TO_IMAGE[scheduler]())
    unpatched = redraw(pipe)
    with attach(pipe, counting_recipe()):
        merged = redraw(pipe)
    over = pytest.warns(MergeWarning, match=r"nothing merged in this run of steps .* during=\(0\.0, 0\.4\)")
    with attach(pipe, replace(counting_recipe(), during=(0.0, 0.4))), over:
        assert torch.equal(redraw(pipe), unpatched)
    with attach(pipe, replace(counting_recipe(), during=(0.4, 1.0))):
        assert torch.equal(redraw(pipe), merged)
    assert not torch.equal(merged, unpatched)


@torch.no_grad()
def test_timestep_is_found_wherever_step_takes_it():
    """CogVideoX's own scheduler takes it third, after the sample that the step before predicted."""
    unet, scheduler = sd_unet(), CogVideoXDPMScheduler()
    with attach(SimpleNamespace(unet=unet, scheduler=scheduler), counting_recipe()) as session:
        scheduler.set_timesteps(6)
        for timestep in scheduler.timesteps[3:]:
            sample = predict(unet, noise(1, 4, 16, 16))
            scheduler.step(sample, None, timestep, None, sample)
        assert {row.step for row in session.summary().rows} == {3, 4, 5}
