"""The session counts the denoising steps of any scheduler, and leaves the scheduler as it was."""

import inspect

import diffusers.schedulers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from catome_adapters import RECIPES, attach
from catome_bench.models.pipeline import ClassConditionalPipeline
from catome_core import PAPER_SCHEDULES
from stepping import SCHEDULE, counting_recipe, expected_calls
from tiers import tiered
from zoo.unet_pipelines import class_pipeline, draw, picture, sd_pipeline

# Exported by diffusers, but no loop of the form set_timesteps, then step(noise, timestep, sample), can use them.
NOT_FOR_NOISE_IN_PIXELS = {
    **dict.fromkeys(("AmusedScheduler", "VQDiffusionScheduler"), "discrete latents"),
    **dict.fromkeys(("BlockRefinementScheduler", "DiscreteDDIMScheduler", "EntropyBoundScheduler"), "text"),
    **dict.fromkeys(("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"), "predicts flow"),
    **dict.fromkeys(("FlowMatchLCMScheduler", "FlowMapEulerDiscreteScheduler", "PiflowScheduler"), "predicts flow"),
    **dict.fromkeys(("LTXEulerAncestralRFScheduler", "MiniMaxH3Scheduler"), "predicts flow"),
    **dict.fromkeys(("HeliosScheduler", "HeliosDMDScheduler"), "stages of growing size"),
    **dict.fromkeys(("KarrasVeScheduler", "ScoreSdeVeScheduler", "ScoreSdeVpScheduler"), "a loop of its own"),
    "CogVideoXDPMScheduler": "needs the step before",
    "ConsistencyDecoderScheduler": "two steps at most",
    "DDPMWuerstchenScheduler": "a timestep for every sample",
    "RFD4ProteinaScheduler": "proteins",
    "RePaintScheduler": "needs an image and a mask",
    "SCMScheduler": "two steps, or a list of timesteps",
}
NEED_TORCHSDE = ("CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler")
WELL_KNOWN = (
    DDIMScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
SCHEDULERS = tiered(
    [
        getattr(diffusers.schedulers, name)
        for name in sorted(dir(diffusers.schedulers))
        if name.endswith("Scheduler") and name not in NOT_FOR_NOISE_IN_PIXELS
    ],
    WELL_KNOWN,
)
CONFIG_3 = PAPER_SCHEDULES["config_3"]

# diffusers hands torch tensors to NumPy functions, and torchsde times that rounding put outside their interval.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning", "ignore:Should have t[ab]:UserWarning")


def make_pipeline(scheduler_class: type) -> ClassConditionalPipeline:
    """Skips for a class, unknown when this was written, that does not drive the pipeline without us either."""
    if scheduler_class.__name__ in NEED_TORCHSDE:
        pytest.importorskip("torchsde")
    pipe = class_pipeline(scheduler_class())
    try:
        draw(pipe)
    except Exception as error:
        if scheduler_class in WELL_KNOWN:
            raise
        pytest.skip(f"{scheduler_class.__name__} does not drive the unpatched pipeline: {error!r}")
    return pipe


@pytest.mark.parametrize("scheduler_class", SCHEDULERS)
def test_checkpoints_are_the_steps_of_the_schedule(scheduler_class):
    pipe, recipe = make_pipeline(scheduler_class), counting_recipe()
    with attach(pipe, recipe) as session:
        recipe.policy.watch(pipe.unet)
        draw(pipe, steps=10)
        total = len(pipe.scheduler.timesteps)
        assert recipe.policy.recomputed == expected_calls(SCHEDULE, total)
        assert {matches for matches in recipe.policy.calls if matches} == {len(session.sites)}
        assert session.summary().checkpoints == tuple(expected_calls(SCHEDULE, total))
        assert [row.step for row in session.summary().rows][:: len(session.sites)] == list(range(total))


@pytest.mark.parametrize("scheduler_class", SCHEDULERS)
def test_next_image_is_the_first_one_again(scheduler_class):
    pipe = make_pipeline(scheduler_class)
    with attach(pipe, counting_recipe()):
        first, second = draw(pipe), draw(pipe)
        draw(pipe, batch=3, size=24)
        third = draw(pipe)
    assert torch.equal(second, first) and torch.equal(third, first)


@pytest.mark.parametrize("scheduler_class", SCHEDULERS)
def test_scheduler_looks_the_same_and_is_restored(scheduler_class):
    pipe = make_pipeline(scheduler_class)
    scheduler, before = pipe.scheduler, set(vars(pipe.scheduler))
    signatures = inspect.signature(scheduler.step), inspect.signature(scheduler.set_timesteps)
    unpatched = draw(pipe)
    session = attach(pipe)
    assert (inspect.signature(scheduler.step), inspect.signature(scheduler.set_timesteps)) == signatures
    draw(pipe)
    session.detach()
    assert set(vars(scheduler)) == before
    assert torch.equal(draw(pipe), unpatched)


@pytest.mark.parametrize(
    ("scheduler_class", "steps", "calls"),
    tiered(
        [(DDIMScheduler, 50, 50), (PNDMScheduler, 50, 59), (HeunDiscreteScheduler, 50, 99), (LCMScheduler, 4, 4)],
        [(PNDMScheduler, 50, 59), (LCMScheduler, 4, 4)],
    ),
)
def test_papers_schedule_follows_the_number_of_calls(scheduler_class, steps, calls):
    pipe, recipe = class_pipeline(scheduler_class()), counting_recipe(CONFIG_3)
    with attach(pipe, recipe):
        recipe.policy.watch(pipe.unet)
        draw(pipe, steps=steps)
    assert len(recipe.policy.calls) == calls
    assert recipe.policy.recomputed == expected_calls(CONFIG_3, calls)


def test_pndm_of_stable_diffusion_makes_51_calls_for_50_steps():
    pipe = sd_pipeline(scheduler=PNDMScheduler(skip_prk_steps=True, steps_offset=1))
    recipe = counting_recipe(CONFIG_3)
    with attach(pipe, recipe):
        recipe.policy.watch(pipe.unet)
        picture(pipe, height=16, width=16, steps=50)
    assert len(recipe.policy.calls) == 51
    assert recipe.policy.recomputed == expected_calls(CONFIG_3, 51)


@pytest.mark.parametrize(
    "given", [{"timesteps": [900, 700, 400, 100]}, {"sigmas": [9.0, 4.0, 2.0, 0.5, 0.0]}], ids=["timesteps", "sigmas"]
)
def test_steps_given_by_hand_are_counted(given):
    """Pipelines look for these parameters in the signature of `set_timesteps`."""
    pipe, recipe = sd_pipeline(scheduler=EulerDiscreteScheduler(steps_offset=1)), counting_recipe()
    with attach(pipe, recipe):
        recipe.policy.watch(pipe.unet)
        picture(pipe, steps=None, **given)
    assert recipe.policy.recomputed == expected_calls(SCHEDULE, 4)


FOR_PICTURES = {name: recipe for name, recipe in RECIPES.items() if recipe.scope != "progressive"}


@pytest.mark.parametrize("recipe", tiered(FOR_PICTURES, ["balanced", "paper", "tomesd"]))
@pytest.mark.parametrize("scheduler_class", tiered([DDIMScheduler, EulerDiscreteScheduler], [DDIMScheduler]))
def test_every_recipe_repeats_its_images(recipe, scheduler_class):
    pipe = class_pipeline(scheduler_class())
    with attach(pipe, recipe):
        first = draw(pipe, batch=2)
        assert torch.equal(draw(pipe, batch=2), first)
