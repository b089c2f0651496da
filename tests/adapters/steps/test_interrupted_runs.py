"""Runs that something else interrupts."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from catome_adapters import attach
from catome_core import MergeWarning
from probes import Interrupted
from stepping import SCHEDULE, counting_recipe, expected_calls
from tiers import tiered
from zoo.pipeline_parts import ddim
from zoo.unet_pipelines import class_pipeline, draw, picture, sd_pipeline


def after_steps(action: Callable[[], Any]) -> dict[str, Any]:
    """Options of a pipeline that does something at the end of every step."""
    return {"callback_on_step_end": lambda *_: action() or {}}


@pytest.mark.thorough
def test_run_within_a_run_disturbs_neither():
    """Two pipelines at once: the inner one draws after every step of the outer one."""
    outer, inner = sd_pipeline(), class_pipeline()
    recipes = counting_recipe(), counting_recipe()
    with attach(outer, recipes[0]), attach(inner, recipes[1]):
        alone = picture(outer, steps=10), draw(inner)
        for pipe, recipe in zip((outer, inner), recipes, strict=True):
            recipe.policy.watch(pipe.unet)
        inside = []
        assert torch.equal(picture(outer, steps=10, **after_steps(lambda: inside.append(draw(inner)))), alone[0])
        assert len(inside) == 10 and all(torch.equal(image, alone[1]) for image in inside)
    assert recipes[0].policy.recomputed == expected_calls(SCHEDULE, 10)
    assert recipes[1].policy.recomputed == [5 * run + step for run in range(10) for step in expected_calls(SCHEDULE, 5)]


@pytest.mark.parametrize("after", tiered([1, 4], [4]))
@pytest.mark.parametrize("replace", [False, True], ids=["same scheduler", "new scheduler"])
def test_interrupted_run_leaves_the_next_one_alone(after, replace):
    pipe = sd_pipeline()
    with attach(pipe, counting_recipe()):
        expected_picture = picture(pipe, steps=10)
    with attach(pipe, counting_recipe()):
        with pytest.raises(Interrupted):
            picture(pipe, steps=10, **after_steps(partial(interrupt, iter(range(10)), after)))
        if replace:
            pipe.scheduler = ddim()
        assert torch.equal(picture(pipe, steps=10), expected_picture)


@pytest.mark.thorough
def test_another_pipeline_on_the_network_needs_a_reset_after_a_run_that_was_broken_off():
    """Its scheduler is not observed, so its calls would go on in the step that is open; a warning says so."""
    pipe, recipe = sd_pipeline(), counting_recipe()
    parts = {name: part for name, part in pipe.components.items() if name in ("unet", "vae")}
    other, stop = sd_pipeline(**parts), partial(interrupt, iter(range(10)), 4)
    with attach(pipe, recipe) as session:
        with pytest.warns(MergeWarning, match="the denoising step is unknown"):
            expected_picture = picture(other, steps=10)
        with pytest.raises(Interrupted):
            picture(pipe, steps=10, **after_steps(stop))
        with pytest.warns(MergeWarning, match=r"broken off, call session\.reset\(\)"):
            assert not torch.equal(picture(other, steps=10), expected_picture)
        session.reset()
        assert torch.equal(picture(other, steps=10), expected_picture)


def interrupt(steps, after):
    if next(steps) == after:
        raise Interrupted


def test_run_stopped_by_the_pipelines_own_switch_leaves_the_next_one_alone():
    pipe, steps = sd_pipeline(), iter(range(10))
    with attach(pipe, counting_recipe()):
        expected_picture = picture(pipe, steps=10)
        stop = after_steps(lambda: setattr(pipe, "_interrupt", next(steps) >= 4))
        stopped = picture(pipe, steps=10, **stop)
        assert not torch.equal(stopped, expected_picture)
        assert torch.equal(picture(pipe, steps=10), expected_picture)


def test_guidance_switched_off_in_the_middle_of_a_run_recomputes():
    """The batch is halved then, as in diffusers' own example of a callback."""
    pipe, recipe = sd_pipeline(), counting_recipe()
    with attach(pipe, recipe) as session:
        recipe.policy.watch(pipe.unet)
        options = {"callback_on_step_end": drop_guidance, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
        images = picture(pipe, steps=10, **options)
        assert session.summary().checkpoints == (0, 3, 5, 7)
    assert recipe.policy.recomputed == [0, 3, 5, 7]
    assert images.isfinite().all()


def drop_guidance(pipe, step, timestep, tensors):
    if step != 4:
        return {}
    pipe._guidance_scale = 0.0
    return {"prompt_embeds": tensors["prompt_embeds"].chunk(2)[1]}
