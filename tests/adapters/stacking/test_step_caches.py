"""Caches that skip steps beside a session on a transformer."""

from dataclasses import replace
from typing import Any

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
from torch import Tensor, nn

from catome_adapters import MergeSession, attach
from catome_core import CheckpointSchedule
from running import TOTAL, all_differ, assert_same, differing_steps, lattice_recipe, make_recipe, run, run_merged
from tiers import tiered
from zoo.transformers import ARCHITECTURES


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
    current_timestep_callback=lambda: TIMESTEPS[0],
    is_guidance_distilled=True,
)
TIMESTEPS = [0]
"""The present one. FasterCache computes the first two steps only if they are out of its range."""
WHOLE = {
    "first block": FirstBlockCacheConfig(threshold=100.0),
    "magnitude": MagCacheConfig(
        threshold=100.0, num_inference_steps=TOTAL, retention_ratio=1 / TOTAL, mag_ratios=[1.0] * TOTAL
    ),
}
INSIDE = {
    "broadcast": BROADCAST,
    "faster": FASTER,
    "taylor": TaylorSeerCacheConfig(
        cache_interval=2,
        disable_cache_before_step=1,
        taylor_factors_dtype=torch.float32,
        # The default names of attention match neither Wan's nor DiT's.
        cache_identifiers=[r".*blocks\.\d+\.attn1?"],
    ),
}
REFUSED = [(name, config, "block") for name, config in (WHOLE | INSIDE).items()]
REFUSED += [(name, config, "attention") for name, config in INSIDE.items()]
MODELS = tiered(["Flux", "Wan"], ["Wan"])


@pytest.mark.parametrize("scope", ["attention", "keys"])
@pytest.mark.parametrize("cache", tiered(WHOLE, [*WHOLE][:2]))
@pytest.mark.parametrize("name", MODELS)
def test_cache_of_whole_blocks_skips_steps_beside_merging(scope, cache, name):
    subject, recipe = ARCHITECTURES[name], make_recipe(scope)
    network = subject.network()
    alone = run_merged(subject, network, recipe)
    with attach(network, recipe) as session:
        run(subject, network, session)
        network.enable_cache(WHOLE[cache])
        both = run(subject, network, session)
    assert torch.equal(both[0], alone[0]) and all_differ(both[1:], alone[1:])
    # Without a session the same steps are skipped, and nothing merges.
    network._reset_stateful_cache()
    cached = run(subject, network)
    assert all_differ(both, cached)
    network.disable_cache()
    assert_same(run_merged(subject, network, recipe), alone)


def run_cached(subject: Any, network: nn.Module, session: MergeSession | None = None) -> list[Tensor]:
    """A run that begins with an empty cache."""
    network._reset_stateful_cache()
    predictions = []
    for step in range(TOTAL):
        TIMESTEPS[0] = 500 if step > 1 else 1000
        predictions += run(subject, network, session, steps=[step])
    return predictions


KEYS = {"pairs": make_recipe("keys"), "lattice": lattice_recipe()}


@pytest.mark.parametrize("recipe", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("cache", INSIDE)
@pytest.mark.parametrize("name", MODELS)
def test_cache_inside_attention_keeps_rows_of_all_tokens_beside_merged_keys(name, cache, recipe):
    """Each run begins anew, in whichever order the two were enabled, and neither leaves a trace."""
    subject = ARCHITECTURES[name]
    network = subject.network()
    whole, alone = run(subject, network), run_merged(subject, network, recipe)
    network.enable_cache(INSIDE[cache])
    cached = run_cached(subject, network)
    with attach(network, recipe) as session:
        both = run_cached(subject, network, session)
        assert_same(run_cached(subject, network, session), both)
        network.disable_cache()
        assert_same(run(subject, network, session), alone)
        network.enable_cache(INSIDE[cache])
        assert_same(run_cached(subject, network, session), both)
    assert torch.equal(both[0], alone[0]) and all_differ(both, cached)
    assert differing_steps(both, alone) and differing_steps(cached, whole)
    network.disable_cache()
    assert_same(run(subject, network), whole)


@pytest.mark.parametrize("first", range(1, 4))
@pytest.mark.parametrize("cache", INSIDE)
@pytest.mark.parametrize("name", MODELS)
def test_merging_may_begin_in_a_step_that_the_cache_skips(name, cache, first):
    """Attention that is not computed cannot be intercepted, and need not be."""
    subject = ARCHITECTURES[name]
    network = subject.network()
    network.enable_cache(INSIDE[cache])
    cached = run_cached(subject, network)
    with attach(network, replace(KEYS["lattice"], during=(first / TOTAL, 1.0))) as session:
        both = run_cached(subject, network, session)
        assert_same(run_cached(subject, network, session), both)
    assert_same(both[:first], cached[:first])
    assert set(differing_steps(both, cached)) & {first, first + 1}


@pytest.mark.parametrize("cache", INSIDE)
def test_near_field_of_the_whole_grid_leaves_the_cache_as_it_is_alone(cache):
    subject, exact = ARCHITECTURES["Flux"], lattice_recipe(near=8)
    network = subject.network()
    network.enable_cache(INSIDE[cache])
    cached = run_cached(subject, network)
    with attach(network, exact) as session:
        assert_same(run_cached(subject, network, session), cached, tolerance=1e-4)


@pytest.mark.parametrize("cache", [WHOLE["magnitude"], INSIDE["taylor"]], ids=["magnitude", "taylor"])
def test_lattice_moves_on_in_steps_that_a_cache_skips(cache):
    subject = ARCHITECTURES["Flux"]
    network = subject.network()
    corners = []
    for config in (None, cache):
        if config is not None:
            network.enable_cache(config)
        with attach(network, KEYS["lattice"]) as session:
            corners.append([])
            for step in range(TOTAL):
                run(subject, network, session, steps=[step])
                corners[-1].append([plan.anchor.tolist() for plan in session.plans().values()])
    assert corners[0] == corners[1] and corners[0][0] != corners[0][1]


def enable_cache_dit(network: nn.Module) -> Any:
    """All steps but the first compute their first block alone."""
    cache_dit = pytest.importorskip("cache_dit")
    options = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "residual_diff_threshold": 100.0, "max_warmup_steps": 1}
    cache_dit.enable_cache(network, cache_config=cache_dit.DBCacheConfig(**options))
    return cache_dit


@pytest.mark.parametrize("recipe", [KEYS["lattice"], make_recipe(), make_recipe("block")], ids=lambda one: one.scope)
def test_cache_dit_skips_steps_beside_merging_and_comes_off(recipe):
    subject = ARCHITECTURES["Flux"]
    network = subject.network()
    whole, alone = run(subject, network), run_merged(subject, network, recipe)
    with attach(network, recipe) as session:
        cache_dit = enable_cache_dit(network)
        both = run(subject, network, session)
        cache_dit.disable_cache(network)
        assert_same(run(subject, network, session), alone)
    assert torch.equal(both[0], alone[0]) and differing_steps(both, alone)
    assert_same(run(subject, network), whole)


@pytest.mark.parametrize("name", MODELS)
def test_cache_dit_is_refused_beside_tokens_that_stay_merged_between_blocks(name):
    subject, recipe = ARCHITECTURES[name], make_recipe("block", segment=2)
    network = subject.network()
    with attach(network, recipe) as session:
        cache_dit = enable_cache_dit(network)
        with pytest.raises(ValueError, match=r"cache-dit compares tokens between blocks.*use segment=1"):
            run(subject, network, session)
    with pytest.raises(ValueError, match=r"segment=2 has them merged; call cache_dit.disable_cache\(\)"):
        attach(network, recipe)
    cache_dit.disable_cache(network)
    attach(network, recipe).detach()


def skip_the_second_step(network: nn.Module) -> nn.Module:
    ratios = {"num_inference_steps": TOTAL, "retention_ratio": 1 / TOTAL, "mag_ratios": [1.0] * TOTAL}
    network.enable_cache(MagCacheConfig(threshold=100.0, max_skip_steps=1, **ratios))
    return network


@pytest.mark.parametrize("scope", ["attention", "keys"])
@pytest.mark.parametrize("name", MODELS)
def test_checkpoint_that_a_cache_skips_comes_at_the_next_step(scope, name):
    """A skipped block is called with what the last block returned: its pairs are not those of its own tokens."""
    subject = ARCHITECTURES[name]
    runs = [
        run_merged(subject, skip_the_second_step(subject.network()), replace(make_recipe(scope), schedule=schedule))
        for schedule in (CheckpointSchedule((0, 1), of=TOTAL), CheckpointSchedule((0, 2), of=TOTAL))
    ]
    assert_same(*runs)


@pytest.mark.parametrize(
    ("cache", "config", "scope"), tiered(REFUSED, REFUSED[::3]), ids=[f"{name}-{scope}" for name, _, scope in REFUSED]
)
def test_cache_that_would_mix_plans_is_refused_before_and_after_attach(cache, config, scope):
    subject, recipe = ARCHITECTURES["Flux"], make_recipe(scope)
    network = subject.network()
    expected = run_merged(subject, network, recipe)
    with attach(network, recipe) as session:
        network.enable_cache(config)
        with pytest.raises(ValueError, match=r"may return for Flux\w+ what it kept.*disable_cache"):
            run(subject, network, session)
        network.disable_cache()
        assert_same(run(subject, network, session), expected)
    network.enable_cache(config)
    with pytest.raises(ValueError, match=r"may return for Flux\w+ what it kept.*disable_cache"):
        attach(network, recipe)
    network.disable_cache()
    assert_same(run_merged(subject, network, recipe), expected)


def test_sea_cache_is_refused_with_whole_blocks():
    network = ARCHITECTURES["Wan"].network()
    network.enable_cache(SeaCacheConfig())
    with pytest.raises(ValueError, match=r"SeaCache\w*Block\w* may return for WanTransformerBlock"):
        attach(network, make_recipe("block"))
    for scope in ("attention", "keys"):
        attach(network, make_recipe(scope)).detach()


def test_cache_is_refused_as_well_where_no_step_is_given():
    subject = ARCHITECTURES["Flux"]
    network = subject.network()
    with attach(network, make_recipe("block")):
        network.enable_cache(WHOLE["first block"])
        with pytest.raises(ValueError, match="disable_cache"), network.cache_context("run"):
            subject.call(network)


def test_attention_broadcast_leaves_keys_merged_by_arguments_alone():
    """PixArt's self-attention returns a row for every token, whatever its keys are: any step's will do."""
    subject, recipe = ARCHITECTURES["PixArt"], make_recipe("keys")
    network = subject.network()
    alone = run_merged(subject, network, recipe)
    apply_pyramid_attention_broadcast(network, BROADCAST)
    both = run_merged(subject, network, recipe)
    assert torch.equal(both[0], alone[0]) and not torch.equal(both[1], alone[1]) and both[1].isfinite().all()


def test_blocks_that_guidance_skips_keep_nothing(recipe):
    """As skip-layer guidance does it: the block returns what it was given."""
    subject = ARCHITECTURES["CogVideoX"]
    network, shallow = subject.network(), subject.network()
    apply_layer_skip(network, LayerSkipConfig(indices=[1], fqn="transformer_blocks"))
    del shallow.transformer_blocks[1]
    assert_same(run_merged(subject, network, recipe), run_merged(subject, shallow, recipe), tolerance=1e-5)
