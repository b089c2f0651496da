"""Attention that diffusers skips, as its guiders do in a perturbed call: it is skipped under a session, too."""

from typing import Any

import pytest
import torch
from diffusers.hooks import HookRegistry, LayerSkipConfig, apply_layer_skip
from torch import Tensor

from catome_adapters import attach, find_sites
from running import call, lattice_recipe, make_recipe
from tiers import tiered
from zoo.transformers import ALL_ARCHITECTURES
from zoo.unets import SD

HOOK = "layer_skip_hook"
WAYS = ("skip_attention", "skip_attention_scores")
MODELS = {"UNet": (SD, "down_blocks.0.attentions.0.transformer_blocks")}
MODELS |= {name: (ALL_ARCHITECTURES[name], "transformer_blocks") for name in ("DiT", "CogView4")}
AROUND = {
    "attention": make_recipe(proportional=True),
    "keys": make_recipe("keys"),
    "lattice": lattice_recipe(),
    "near field": lattice_recipe(near="auto"),
}
"""Recipes whose blocks run on all tokens."""


def skip_attention(network: Any, way: str, stack: str) -> None:
    skipped = {"skip_attention": False, "skip_ff": False} | {way: True}
    apply_layer_skip(network, LayerSkipConfig([*range(len(network.get_submodule(stack)))], fqn=stack, **skipped))


def call_skipping(model: Any, network: Any, session: Any, way: str, stack: str) -> tuple[Tensor, Tensor, Tensor]:
    """One step: a call, the same with the attention of a stack skipped, and the first again."""
    usual = call(model, network, session)
    skip_attention(network, way, stack)
    skipped = model.call(network)
    HookRegistry.check_if_exists_or_initialize(network).remove_hook(HOOK, recurse=True)
    return usual, skipped, model.call(network)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", tiered(MODELS, [*MODELS][:1]))
@pytest.mark.parametrize("recipe", AROUND)
def test_attention_that_is_skipped_everywhere_does_not_merge(recipe, name, way):
    model, stack = MODELS[name]
    network = model.network()
    sites = [one for one in find_sites(network) if one.name.startswith(stack)]
    with attach(network, AROUND[recipe], sites=sites) as session:
        usual, skipped, again = call_skipping(model, network, session, way, stack)
    skip_attention(network, way, stack)
    assert torch.equal(skipped, model.call(network))
    assert not torch.allclose(skipped, usual, atol=1e-3)
    assert torch.equal(again, usual)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_block_on_merged_tokens_skips_its_attention(name, way):
    """The slots pass through, as the tokens would."""
    model, stack = MODELS[name]
    network = model.network()
    with attach(network, make_recipe("block", proportional=True)) as session:
        usual, skipped, again = call_skipping(model, network, session, way, stack)
        assert session.summary().merged_fraction > 0.3
    assert skipped.isfinite().all() and not torch.allclose(skipped, usual, atol=1e-3)
    assert torch.equal(again, usual)
