"""Number formats of a UNet."""

import pytest
import torch

from catome_adapters import attach
from probes import CountingMerge
from running import assert_same, differing_steps, run, unet_recipe
from zoo.noise import noise
from zoo.unets import SD, predict, sd_unet


@pytest.mark.parametrize("spare", ["pad", "fill"])
@pytest.mark.parametrize("kind", ["weights", "autocast"])
def test_bfloat16_runs_and_merges(scope, spare, kind):
    unet, recipe = sd_unet(), unet_recipe(scope, spare=spare)
    with attach(unet, recipe) as session:
        exact = run(SD, unet, session, steps=(0, 1))
        if kind == "weights":
            unet.to(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
            rough = run(SD, unet, session, steps=(0, 1))
        assert session.summary().merged_fraction > 0.3
    assert differing_steps([prediction.float() for prediction in rough], exact)
    assert_same(rough, exact, tolerance=0.1, check_dtype=False)


@torch.no_grad()
def test_leaving_autocast_in_the_middle_of_a_run_recomputes():
    unet, recipe = sd_unet(), unet_recipe(policy=CountingMerge)
    with attach(unet, recipe) as session:
        recipe.policy.watch(unet)
        for step in range(4):
            session.begin_step(step, 300)
            with torch.autocast("cpu", torch.bfloat16, enabled=step < 2):
                predict(unet, noise(1, 4, 16, 16))
    assert recipe.policy.recomputed == [0, 2]
