"""Masks that the caller of a UNet passes."""

import pytest
import torch

from catome_adapters import attach
from running import differing_steps, run, unet_recipe
from zoo.noise import noise
from zoo.unets import SD, predict, sd_unet


@torch.no_grad()
def test_attention_mask_is_refused_with_a_remedy(scope):
    unet, recipe = sd_unet(), unet_recipe(scope)
    mask = torch.ones(2, 256)
    with attach(unet, recipe) as session:
        session.begin_step(0, 3)
        with pytest.raises(ValueError, match=r"transformer_blocks.0 was given an attention_mask of shape.*detach"):
            predict(unet, noise(2, 4, 16, 16), attention_mask=mask)


def test_mask_over_the_text_is_no_matter(scope):
    unet, recipe = sd_unet(), unet_recipe(scope)
    mask = {"encoder_attention_mask": torch.tensor([[1, 1, 0]]).expand(2, -1)}
    with attach(unet, recipe) as session:
        masked, open_ = run(SD, unet, session, steps=(0, 1), **mask), run(SD, unet, session, steps=(0, 1))
    assert all(prediction.isfinite().all() for prediction in masked) and differing_steps(masked, open_)
