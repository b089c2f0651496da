"""The session knows the denoising step, whatever scheduler drives the model, and leaves the scheduler as it was."""

import copy
import importlib.util
import inspect
import warnings
from dataclasses import replace
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import diffusers.schedulers
import pytest
import torch
from diffusers import (
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    UniPCMultistepScheduler,
)

from catome_adapters import RECIPES, MergeRecipe, attach
from catome_bench.pipeline import ClassConditionalPipeline
from catome_core import PAPER_SCHEDULES, CheckpointSchedule
from models import CountingMerge, class_pipeline, ddim, draw, noise, predict, quiet, sd_pipeline, sd_unet

# Exported by diffusers, but no loop of the form set_timesteps, then step(noise, timestep, sample), can use them.
NOT_FOR_NOISE_IN_PIXELS = {
    **dict.fromkeys(("AmusedScheduler", "VQDiffusionScheduler"), "discrete latents"),
    **dict.fromkeys(("BlockRefinementScheduler", "DiscreteDDIMScheduler", "EntropyBoundScheduler"), "text"),
    **dict.fromkeys(("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"), "predicts flow"),
    **dict.fromkeys(("FlowMatchLCMScheduler", "FlowMapEulerDiscreteScheduler", "PiflowScheduler"), "predicts flow"),
    **dict.fromkeys(("LTXEulerAncestralRFScheduler", "MiniMaxH3Scheduler"), "predicts flow"),
    **dict.fromkeys(("HeliosScheduler", "HeliosDMDScheduler"), "stages of growing size"),
    **dict.fromkeys(("KarrasVeScheduler", "ScoreSdeVeScheduler", "ScoreSdeVpScheduler"), "a loop of its own"),
    "CogVideoXDPMScheduler": "wants the step before",
    "ConsistencyDecoderScheduler": "two steps at most",
    "DDPMWuerstchenScheduler": "a timestep for every sample",
    "RFD4ProteinaScheduler": "proteins",
    "RePaintScheduler": "wants an image and a mask",
    "SCMScheduler": "two steps, or a list of timesteps",
}
NEED_TORCHSDE = ("CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler")
SCHEDULERS = [
    pytest.param(getattr(diffusers.schedulers, name), id=name, marks=[] if name not in NEED_TORCHSDE else no_torchsde)
    for no_torchsde in [pytest.mark.skipif(importlib.util.find_spec("torchsde") is None, reason="needs torchsde")]
    for name in sorted(dir(diffusers.schedulers))
    if name.endswith("Scheduler") and name not in NOT_FOR_NOISE_IN_PIXELS
]
WELL_KNOWN = (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
SCHEDULE = CheckpointSchedule((0, 3, 7), of=10)
CONFIG_3 = PAPER_SCHEDULES["config_3"]

# diffusers hands torch tensors to NumPy functions, and torchsde times that rounding put outside their interval.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning", "ignore:Should have t[ab]:UserWarning")


def make_recipe(schedule: CheckpointSchedule = SCHEDULE) -> MergeRecipe:
    return MergeRecipe(CountingMerge(threshold=0.7), schedule)


def expected(schedule: CheckpointSchedule, total: int, first: int = 0) -> list[int]:
    """The calls that recompute, from 0, in a run of `total` steps of which the first ones are left out."""
    checkpoints = set(schedule.rescaled(total).steps) | {first}
    return [step - first for step in range(first, total) if step in checkpoints]


def make_pipeline(scheduler_class: type) -> ClassConditionalPipeline:
    """Skips for a class, unknown when this was written, that does not drive the pipeline without us either."""
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
    pipe, recipe = make_pipeline(scheduler_class), make_recipe()
    with attach(pipe, recipe) as session:
        recipe.policy.watch(pipe.unet)
        draw(pipe, steps=10)
        total = len(pipe.scheduler.timesteps)
        assert recipe.policy.recomputed == expected(SCHEDULE, total)
        assert {matches for matches in recipe.policy.calls if matches} == {len(session.sites)}
        assert session.summary().checkpoints == tuple(expected(SCHEDULE, total))
        assert [row.step for row in session.summary().rows][:: len(session.sites)] == list(range(total))


@pytest.mark.parametrize("scheduler_class", SCHEDULERS)
def test_next_image_is_the_first_one_again(scheduler_class):
    pipe = make_pipeline(scheduler_class)
    with attach(pipe, make_recipe()):
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
    [(DDIMScheduler, 50, 50), (PNDMScheduler, 50, 59), (HeunDiscreteScheduler, 50, 99), (LCMScheduler, 4, 4)],
)
def test_papers_schedule_follows_the_number_of_calls(scheduler_class, steps, calls):
    pipe, recipe = class_pipeline(scheduler_class()), make_recipe(CONFIG_3)
    with attach(pipe, recipe):
        recipe.policy.watch(pipe.unet)
        draw(pipe, steps=steps)
    assert len(recipe.policy.calls) == calls
    assert recipe.policy.recomputed == expected(CONFIG_3, calls)


def test_pndm_of_stable_diffusion_makes_51_calls_for_50_steps():
    pipe = sd_pipeline(scheduler=PNDMScheduler(skip_prk_steps=True, steps_offset=1))
    recipe = make_recipe(CONFIG_3)
    with attach(pipe, recipe):
        recipe.policy.watch(pipe.unet)
        pipe("a cat", height=16, width=16, num_inference_steps=50, output_type="latent")
    assert len(recipe.policy.calls) == 51
    assert recipe.policy.recomputed == expected(CONFIG_3, 51)


@pytest.mark.parametrize(
    "given", [{"timesteps": [900, 700, 400, 100]}, {"sigmas": [9.0, 4.0, 2.0, 0.5, 0.0]}], ids=["timesteps", "sigmas"]
)
def test_steps_given_by_hand_are_counted(given):
    """Pipelines look for these parameters in the signature of `set_timesteps`."""
    pipe, recipe = sd_pipeline(scheduler=EulerDiscreteScheduler(steps_offset=1)), make_recipe()
    with attach(pipe, recipe):
        recipe.policy.watch(pipe.unet)
        picture(pipe, num_inference_steps=None, **given)
    assert recipe.policy.recomputed == expected(SCHEDULE, 4)


FOR_PICTURES = {name: recipe for name, recipe in RECIPES.items() if not recipe.progressive}


@pytest.mark.parametrize("recipe", FOR_PICTURES.values(), ids=FOR_PICTURES)
@pytest.mark.parametrize("scheduler_class", [DDIMScheduler, EulerDiscreteScheduler])
def test_every_recipe_repeats_its_images(recipe, scheduler_class):
    pipe = class_pipeline(scheduler_class())
    with attach(pipe, recipe):
        first = draw(pipe, batch=2)
        assert torch.equal(draw(pipe, batch=2), first)


IMAGE_TO_IMAGE = {
    "ddim": ddim,
    "euler": partial(EulerDiscreteScheduler, steps_offset=1),
    "dpm++": partial(DPMSolverMultistepScheduler, steps_offset=1),
    "pndm": partial(PNDMScheduler, skip_prk_steps=True, steps_offset=1),
    "heun": partial(HeunDiscreteScheduler, steps_offset=1),
}


@pytest.mark.parametrize("scheduler", IMAGE_TO_IMAGE)
def test_image_to_image_begins_in_the_middle(scheduler):
    pipe, recipe = sd_pipeline(StableDiffusionImg2ImgPipeline, IMAGE_TO_IMAGE[scheduler]()), make_recipe()
    with attach(pipe, recipe) as session:
        recipe.policy.watch(pipe.unet)
        first = redraw(pipe)
        total, calls = len(pipe.scheduler.timesteps), len(recipe.policy.calls)
        assert 0 < calls < total
        assert recipe.policy.recomputed == expected(SCHEDULE, total, total - calls)
        assert {row.step for row in session.summary().rows} == set(range(total - calls, total))
        assert torch.equal(redraw(pipe), first)


@pytest.mark.parametrize("scheduler", IMAGE_TO_IMAGE)
def test_first_part_of_the_schedule_is_over_when_image_to_image_begins(scheduler):
    pipe = sd_pipeline(StableDiffusionImg2ImgPipeline, IMAGE_TO_IMAGE[scheduler]())
    unpatched = redraw(pipe)
    with attach(pipe, make_recipe()):
        merged = redraw(pipe)
    with attach(pipe, replace(make_recipe(), during=(0.0, 0.4))):
        assert torch.equal(redraw(pipe), unpatched)
    with attach(pipe, replace(make_recipe(), during=(0.4, 1.0))):
        assert torch.equal(redraw(pipe), merged)
    assert not torch.equal(merged, unpatched)


@torch.no_grad()
def test_timestep_is_found_wherever_step_takes_it():
    """CogVideoX's own scheduler takes it third, after the sample that the step before predicted."""
    unet, scheduler = sd_unet(), CogVideoXDPMScheduler()
    with attach(SimpleNamespace(unet=unet, scheduler=scheduler), make_recipe()) as session:
        scheduler.set_timesteps(6)
        for timestep in scheduler.timesteps[3:]:
            sample = predict(unet, noise(1, 4, 16, 16))
            scheduler.step(sample, None, timestep, None, sample)
        assert {row.step for row in session.summary().rows} == {3, 4, 5}


def redraw(pipe):
    image = noise(1, 3, 32, 32).clamp(0, 1)
    generator = torch.Generator().manual_seed(0)
    options = {"strength": 0.5, "num_inference_steps": 10, "generator": generator, "output_type": "latent"}
    return pipe("a cat", image=image, **options).images


def test_run_within_a_run_disturbs_neither():
    """Two pipelines at once: the inner one draws after every step of the outer one."""
    outer, inner = sd_pipeline(), class_pipeline()
    recipes = make_recipe(), make_recipe()
    with attach(outer, recipes[0]), attach(inner, recipes[1]):
        alone = picture(outer), draw(inner)
        for pipe, recipe in zip((outer, inner), recipes, strict=True):
            recipe.policy.watch(pipe.unet)
        inside = []
        assert torch.equal(picture(outer, lambda: inside.append(draw(inner))), alone[0])
        assert len(inside) == 10 and all(torch.equal(image, alone[1]) for image in inside)
    assert recipes[0].policy.recomputed == expected(SCHEDULE, 10)
    assert recipes[1].policy.recomputed == [5 * run + step for run in range(10) for step in expected(SCHEDULE, 5)]


def picture(pipe, after_step=lambda: None, **options):
    """Latents of a text-to-image pipeline, ten steps."""
    options = {"height": 32, "width": 32, "num_inference_steps": 10, "output_type": "latent"} | options
    generator = torch.Generator().manual_seed(0)
    return pipe("a cat", generator=generator, callback_on_step_end=lambda *_: after_step() or {}, **options).images


def test_two_pipelines_may_share_a_scheduler():
    scheduler = ddim()
    before = set(vars(scheduler))
    pipes = class_pipeline(scheduler), class_pipeline(scheduler)
    alone = [with_session(pipe) for pipe in pipes]
    sessions = [attach(pipe, make_recipe()) for pipe in pipes]
    assert all(torch.equal(draw(pipe), image) for pipe, image in zip(pipes, alone, strict=True))
    sessions[0].detach()
    assert torch.equal(draw(pipes[1]), alone[1])
    assert sessions[1].summary().checkpoints == tuple(expected(SCHEDULE, 5))
    sessions[1].detach()
    assert set(vars(scheduler)) == before


def with_session(pipe):
    with attach(pipe, make_recipe()):
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
    pipe, recipe = class_pipeline(), make_recipe()
    old, before = pipe.scheduler, set(vars(pipe.scheduler))
    with attach(pipe, recipe) as session:
        draw(pipe)
        pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
        untouched = set(vars(pipe.scheduler))
        recipe.policy.watch(pipe.unet)
        first = draw(pipe, steps=10)
        assert torch.equal(draw(pipe, steps=10), first)
        assert set(vars(old)) == before
        assert session.summary().checkpoints == tuple(expected(SCHEDULE, 19))
    assert recipe.policy.recomputed == expected(SCHEDULE, 19) + [19 + step for step in expected(SCHEDULE, 19)]
    # What the scheduler itself sets in a run is its own affair.
    assert not {"step", "set_timesteps", "catome_clock"} & set(vars(pipe.scheduler))
    assert untouched <= set(vars(pipe.scheduler))


class Interrupted(Exception):
    """What a test throws between two steps."""


@pytest.mark.parametrize("after", [1, 4])
@pytest.mark.parametrize("replace", [False, True], ids=["same scheduler", "new scheduler"])
def test_interrupted_run_leaves_the_next_one_alone(after, replace):
    pipe = sd_pipeline()
    with attach(pipe, make_recipe()):
        expected_picture = picture(pipe)
    with attach(pipe, make_recipe()):
        with pytest.raises(Interrupted):
            picture(pipe, partial(interrupt, iter(range(10)), after))
        if replace:
            pipe.scheduler = ddim()
        assert torch.equal(picture(pipe), expected_picture)


def interrupt(steps, after):
    if next(steps) == after:
        raise Interrupted


def test_run_stopped_by_the_pipelines_own_switch_leaves_the_next_one_alone():
    pipe, steps = sd_pipeline(), iter(range(10))
    with attach(pipe, make_recipe()):
        expected_picture = picture(pipe)
        stopped = picture(pipe, lambda: setattr(pipe, "_interrupt", next(steps) >= 4))
        assert not torch.equal(stopped, expected_picture)
        assert torch.equal(picture(pipe), expected_picture)


def test_guidance_switched_off_in_the_midst_of_a_run_recomputes():
    """The batch is halved then, as in diffusers' own example of a callback."""
    pipe, recipe = sd_pipeline(), make_recipe()
    with attach(pipe, recipe) as session:
        recipe.policy.watch(pipe.unet)
        options = {"callback_on_step_end": drop_guidance, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
        images = pipe("a cat", height=32, width=32, num_inference_steps=10, output_type="latent", **options).images
        assert session.summary().checkpoints == (0, 3, 5, 7)
    assert recipe.policy.recomputed == [0, 3, 5, 7]
    assert images.isfinite().all()


def drop_guidance(pipe, step, timestep, tensors):
    if step != 4:
        return {}
    pipe._guidance_scale = 0.0
    return {"prompt_embeds": tensors["prompt_embeds"].chunk(2)[1]}


def test_network_of_a_finished_pipeline_is_never_stale_under_another():
    pipe, recipe = class_pipeline(), make_recipe()
    other = quiet(ClassConditionalPipeline(pipe.unet, LMSDiscreteScheduler(), pipe.config.class_names))
    with attach(pipe, recipe):
        draw(pipe)
        recipe.policy.watch(pipe.unet)
        with pytest.warns(UserWarning, match="begin_step"):
            draw(other)
    assert recipe.policy.recomputed == list(range(5))


def test_copy_of_an_attached_scheduler_is_a_scheduler_of_its_own():
    """Pipelines with two modalities step a copy of their scheduler."""
    pipe = class_pipeline()
    with attach(pipe):
        pipe.scheduler.set_timesteps(5)
        twin = copy.deepcopy(pipe.scheduler)
        twin.set_timesteps(7)
        assert (len(twin.timesteps), len(pipe.scheduler.timesteps)) == (7, 5)


def test_wrapper_that_was_there_before_is_there_afterwards():
    pipe = class_pipeline()
    pipe.scheduler.step = wrapper = partial(pipe.scheduler.step)
    with attach(pipe):
        draw(pipe)
    assert vars(pipe.scheduler).get("step") is wrapper


@torch.no_grad()
def test_bare_network_without_steps_recomputes_always_and_warns_once():
    unet, recipe = sd_unet(), make_recipe()
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
def told(unet, steps, total=10) -> CountingMerge:
    """A bare network that is told these steps, one call each."""
    recipe = make_recipe()
    with attach(unet, recipe) as session:
        recipe.policy.watch(unet)
        for step in steps:
            session.begin_step(step, total)
            predict(unet, noise(1, 4, 16, 16, seed=step))
    return recipe.policy


@pytest.mark.parametrize("total", [10, 5, 20])
def test_begin_step_drives_a_bare_network(total):
    assert told(sd_unet(), range(total), total).recomputed == expected(SCHEDULE, total)


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
def test_first_told_step_of_a_run_recomputes(steps, recomputed):
    assert told(sd_unet(), steps).recomputed == recomputed


@torch.no_grad()
def test_every_call_within_a_checkpoint_step_recomputes():
    """Guidance in two calls: they do not share pairs while these are being made."""
    unet, recipe = sd_unet(), make_recipe()
    with attach(unet, recipe) as session:
        recipe.policy.watch(unet)
        for step, _ in pairwise(range(4)):
            session.begin_step(step, 10)
            predict(unet, noise(1, 4, 16, 16))
            predict(unet, noise(1, 4, 16, 16, seed=1))
    assert recipe.policy.recomputed == [0, 1]


@pytest.mark.parametrize(("step", "total"), [(-1, 10), (10, 10), (11, 10), (0, 0)])
def test_begin_step_outside_the_run_is_refused(step, total):
    with attach(sd_unet()) as session, pytest.raises(ValueError, match=rf"step is {step} of {total}.*count from 0"):
        session.begin_step(step, total)


@torch.no_grad()
def test_refused_step_changes_nothing():
    unet, recipe = sd_unet(), make_recipe()
    with attach(unet, recipe) as session:
        recipe.policy.watch(unet)
        for step in (0, 1, 2):
            session.begin_step(step, 10)
            with pytest.raises(ValueError, match="count from 0"):
                session.begin_step(10, 10)
            predict(unet, noise(1, 4, 16, 16))
    assert recipe.policy.recomputed == [0]


@torch.no_grad()
def test_reset_begins_anew_with_the_network_told_or_not():
    unet, recipe = sd_unet(), make_recipe()
    with attach(unet, recipe) as session:
        recipe.policy.watch(unet)
        for step in (0, 1):
            session.begin_step(step, 10)
            predict(unet, noise(1, 4, 16, 16))
        session.reset()
        session.begin_step(2, 10)
        predict(unet, noise(1, 4, 16, 16))
    assert recipe.policy.recomputed == [0, 2]
