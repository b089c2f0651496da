"""What changes a UNet: the same picture whether it comes before or after the session, and gone when it is gone."""

from functools import partial
from itertools import cycle, product

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from torch import nn

from catome_adapters import attach, find_sites
from changes import add_unet_lora, fuse_projections
from running import SCOPES, assert_same, differing_steps, run, unet_recipe
from tiers import tiered
from zoo.noise import noise
from zoo.unets import SD, TEXT_WIDTH, predict, sd_unet


def enable_freeu(unet) -> None:
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)


def use_unfused_attention(unet) -> None:
    unet.set_attn_processor(AttnProcessor())


def slice_attention(unet) -> None:
    unet.set_attention_slice("max")


PROCESSORS = {"fused": AttnProcessor2_0, "unfused": AttnProcessor, "sliced": partial(SlicedAttnProcessor, 1)}
CHANGES = [add_unet_lora, fuse_projections, enable_freeu, use_unfused_attention, slice_attention]


@pytest.mark.parametrize(("change", "scope"), tiered(product(CHANGES, SCOPES), [*zip(CHANGES, cycle(SCOPES))]))
def test_change_before_and_after_attach_is_the_same(scope, change):
    before, after, recipe = sd_unet(), sd_unet(), unet_recipe(scope)
    change(before)
    with attach(before, recipe) as session:
        expected = run(SD, before, session, steps=(0, 1))
    with attach(after, recipe) as session:
        plain = run(SD, after, session, steps=(0, 1))
        change(after)
        changed = run(SD, after, session, steps=(0, 1))
        assert session.summary().merged_fraction > 0.3
    assert_same(changed, expected)
    assert differing_steps(changed, plain) or change not in (add_unet_lora, enable_freeu)
    # Detached, nothing of the session is left: it is the changed network.
    assert_same(run(SD, after, steps=(0, 1)), run(SD, before, steps=(0, 1)))


def test_fused_projections_give_the_same(scope):
    unet = sd_unet()
    with attach(unet, unet_recipe(scope)) as session:
        expected = run(SD, unet, session, steps=(0, 1))
        fuse_projections(unet)
        assert_same(run(SD, unet, session, steps=(0, 1)), expected, tolerance=1e-4)


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("spare", ["pad", "fill"])
@pytest.mark.parametrize("proportional", [True, False])
def test_every_processor_takes_every_mask(processor, spare, proportional):
    unet, recipe = sd_unet(), unet_recipe(spare=spare, proportional=proportional)
    with attach(unet, recipe) as session:
        expected = run(SD, unet, session, steps=(0, 1))
        unet.set_attn_processor(PROCESSORS[processor]())
        assert_same(run(SD, unet, session, steps=(0, 1)), expected, tolerance=1e-4)


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("spare", ["pad", "fill"])
@torch.no_grad()
def test_shared_plan_serves_the_whole_batch(processor, spare):
    unet = sd_unet()
    unet.set_attn_processor(PROCESSORS[processor]())
    sample, text = noise(1, 4, 16, 16), noise(1, 3, TEXT_WIDTH)
    with attach(unet, unet_recipe(spare=spare, shared=True)) as session:
        session.begin_step(0, 3)
        alone = predict(unet, sample, encoder_hidden_states=text)
        session.begin_step(0, 3)
        twins = predict(unet, sample.expand(2, -1, -1, -1), encoder_hidden_states=text.expand(2, -1, -1))
    assert_same(list(twins), [alone[0]] * 2, tolerance=1e-4)


def test_hooks_of_others_stay_where_they_were(scope):
    unet, recipe, seen = sd_unet(), unet_recipe(scope), []
    block = find_sites(unet)[0].block
    handle = block.register_forward_hook(lambda *_: seen.append("before"))
    with attach(unet, recipe) as session:
        block.register_forward_hook(lambda *_: seen.append("during"))
        run(SD, unet, session, steps=(0, 1))
    run(SD, unet, steps=(0, 1))
    assert seen == ["before", "during"] * 4
    handle.remove()
    assert isinstance(block, nn.Module) and len(block._forward_hooks) == 1
