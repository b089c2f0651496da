"""Beside a session on a transformer: attention kernels, and caches that skip steps."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import LayerSkipConfig, apply_layer_skip, apply_pyramid_attention_broadcast
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch import nn

from architectures import ARCHITECTURES
from catome_adapters import MergeRecipe, attach
from catome_core import CheckpointSchedule
from scopes import SCOPES
from stacks import STEPS, assert_same, call, differ, make_recipe, merged, run, untold


@pytest.fixture(autouse=True)
def default_backend() -> Iterator[None]:
    """`set_attention_backend` changes the default of all networks."""
    yield
    _AttentionBackendRegistry.set_active_backend("native")


@pytest.fixture(params=SCOPES)
def recipe(request) -> MergeRecipe:
    return make_recipe(request.param)


# Attention kernels.


@pytest.mark.parametrize("backend", ["native", "_native_math"])
@pytest.mark.parametrize("name", ["Flux", "Wan", "Qwen-Image"])
def test_backends_of_torch_are_told(recipe, backend, name):
    subject = ARCHITECTURES[name]
    network = subject.network()
    with attach(network, recipe) as session:
        expected = run(subject, network, session)
        network.set_attention_backend(backend)
        assert_same(run(subject, network, session), expected, tolerance=1e-4)


FLEX_IS_SLOW = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")


@FLEX_IS_SLOW
@pytest.mark.parametrize("scope", ["attention", "block"])
@pytest.mark.parametrize("name", ["Flux", "Wan"])
def test_backend_that_cannot_be_told_works_where_nothing_need_be_told(scope, name):
    subject = ARCHITECTURES[name]
    network = subject.network()
    with attach(network, untold(scope)) as session:
        expected = run(subject, network, session)
        # The checks are diffusers' own, for kernels that this machine may not have.
        network.set_attention_backend("flex")
        assert_same(run(subject, network, session), expected, tolerance=1e-4)


@pytest.mark.parametrize("backend", ["flex", "_native_flash"])
def test_backend_that_cannot_be_told_is_refused_before_and_after_attach(backend):
    subject = ARCHITECTURES["Flux"]
    network = subject.network()
    message = f"transformer_blocks.0: the attention backend '{backend}' .*set_attention_backend.'native'.*spare='fill'"
    with attach(network, make_recipe()) as session:
        expected = run(subject, network, session)
        network.set_attention_backend(backend)
        with pytest.raises(ValueError, match=message):
            run(subject, network, session)
        network.set_attention_backend("native")
        assert_same(run(subject, network, session), expected)
    network.set_attention_backend(backend)
    with pytest.raises(ValueError, match=message):
        attach(network, make_recipe())


def test_keys_need_to_be_told_of_the_anchors_and_a_kernel_without_masks_will_do():
    subject = ARCHITECTURES["Flux"]
    network = subject.network()
    recipe = untold("keys")
    expected = merged(subject, network, recipe)
    network.set_attention_backend("_native_flash")
    assert_same(merged(subject, network, recipe), expected, tolerance=1e-4)
    network.set_attention_backend("flex")
    with pytest.raises(ValueError, match="'flex' cannot be told"):
        attach(network, recipe)


# Caches over steps.


def in_the_middle() -> int:
    return 500


BROADCAST = PyramidAttentionBroadcastConfig(
    spatial_attention_block_skip_range=2,
    spatial_attention_timestep_skip_range=(0, 1000),
    current_timestep_callback=in_the_middle,
)
FASTER = FasterCacheConfig(
    spatial_attention_block_skip_range=2,
    spatial_attention_timestep_skip_range=(0, 1000),
    unconditional_batch_timestep_skip_range=(0, 1),
    attention_weight_callback=lambda _: 0.5,
    current_timestep_callback=in_the_middle,
    is_guidance_distilled=True,
)
WHOLE = {
    "first block": FirstBlockCacheConfig(threshold=100.0),
    "magnitude": MagCacheConfig(
        threshold=100.0, num_inference_steps=STEPS, retention_ratio=0.25, mag_ratios=[1.0] * STEPS
    ),
}
INSIDE = {
    "broadcast": BROADCAST,
    "faster": FASTER,
    "taylor": TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1, taylor_factors_dtype=torch.float32),
}
REFUSED = [(name, config, "block") for name, config in (WHOLE | INSIDE).items()]
REFUSED += [(name, config, scope) for name, config in INSIDE.items() for scope in ("attention", "keys")]


@pytest.mark.parametrize("scope", ["attention", "keys"])
@pytest.mark.parametrize("cache", WHOLE)
@pytest.mark.parametrize("name", ["Flux", "Wan"])
def test_cache_of_whole_blocks_skips_steps_beside_merging(scope, cache, name):
    subject, recipe = ARCHITECTURES[name], make_recipe(scope)
    network = subject.network()
    alone = merged(subject, network, recipe)
    with attach(network, recipe) as session:
        run(subject, network, session)
        network.enable_cache(WHOLE[cache])
        both = run(subject, network, session)
    assert torch.equal(both[0], alone[0]) and differ(both[1:], alone[1:])
    # Without a session the same steps are skipped, and nothing merges.
    network._reset_stateful_cache()
    cached = run(subject, network)
    assert differ(both, cached)
    network.disable_cache()
    assert_same(merged(subject, network, recipe), alone)


def skip_the_second_step(network: nn.Module) -> nn.Module:
    ratios = {"num_inference_steps": STEPS, "retention_ratio": 1 / STEPS, "mag_ratios": [1.0] * STEPS}
    network.enable_cache(MagCacheConfig(threshold=100.0, max_skip_steps=1, **ratios))
    return network


@pytest.mark.parametrize("scope", ["attention", "keys"])
@pytest.mark.parametrize("name", ["Flux", "Wan"])
def test_checkpoint_that_a_cache_skips_comes_at_the_next_step(scope, name):
    """A skipped block is called with what the last block returned: its pairs are not those of its own tokens."""
    subject = ARCHITECTURES[name]
    runs = [
        merged(subject, skip_the_second_step(subject.network()), replace(make_recipe(scope), schedule=schedule))
        for schedule in (CheckpointSchedule((0, 1), of=STEPS), CheckpointSchedule((0, 2), of=STEPS))
    ]
    assert_same(*runs)


@pytest.mark.parametrize(("cache", "config", "scope"), REFUSED, ids=[f"{name}-{scope}" for name, _, scope in REFUSED])
def test_cache_that_would_mix_plans_is_refused_before_and_after_attach(cache, config, scope):
    subject, recipe = ARCHITECTURES["Flux"], make_recipe(scope)
    network = subject.network()
    expected = merged(subject, network, recipe)
    with attach(network, recipe) as session:
        network.enable_cache(config)
        with pytest.raises(ValueError, match=r"may answer for Flux\w+ with what it kept.*disable_cache"):
            run(subject, network, session)
        network.disable_cache()
        assert_same(run(subject, network, session), expected)
    network.enable_cache(config)
    with pytest.raises(ValueError, match=r"may answer for Flux\w+ with what it kept.*disable_cache"):
        attach(network, recipe)
    network.disable_cache()
    assert_same(merged(subject, network, recipe), expected)


def test_sea_cache_is_refused_with_whole_blocks():
    network = ARCHITECTURES["Wan"].network()
    network.enable_cache(SeaCacheConfig())
    with pytest.raises(ValueError, match=r"SeaCache\w*Block\w* may answer for WanTransformerBlock"):
        attach(network, make_recipe("block"))
    for scope in ("attention", "keys"):
        attach(network, make_recipe(scope)).detach()


def test_cache_is_refused_as_well_where_nobody_tells_the_step():
    subject = ARCHITECTURES["Flux"]
    network = subject.network()
    with attach(network, make_recipe("block")):
        network.enable_cache(WHOLE["first block"])
        with pytest.raises(ValueError, match="disable_cache"), network.cache_context("run"):
            call(subject, network)


def test_attention_broadcast_leaves_keys_merged_by_arguments_alone():
    """PixArt's self-attention returns a row for every token, whatever its keys are: any step's will do."""
    subject, recipe = ARCHITECTURES["PixArt"], make_recipe("keys")
    network = subject.network()
    alone = merged(subject, network, recipe)
    apply_pyramid_attention_broadcast(network, BROADCAST)
    both = merged(subject, network, recipe)
    assert torch.equal(both[0], alone[0]) and not torch.equal(both[1], alone[1]) and both[1].isfinite().all()


def test_blocks_that_guidance_skips_keep_nothing(recipe):
    """As skip-layer guidance does it: the block returns what it was given."""
    subject = ARCHITECTURES["CogVideoX"]
    network, shallow = subject.network(), subject.network()
    apply_layer_skip(network, LayerSkipConfig(indices=[1], fqn="transformer_blocks"))
    del shallow.transformer_blocks[1]
    assert_same(merged(subject, network, recipe), merged(subject, shallow, recipe), tolerance=1e-5)
