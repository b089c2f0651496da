"""What merging is predicted to save and cost, against what runs."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from catome_adapters import MergeRecipe, MergeSite, attach, find_sites
from catome_adapters.architectures.unet import LAYOUT, at_size
from catome_adapters.hooks.scopes import SCOPES
from catome_adapters.prediction.levels import LevelGain, winning_levels
from catome_adapters.prediction.rates import DeviceRates
from catome_adapters.prediction.seconds import Prediction, predict
from catome_adapters.sites.weights import TEXT_TOKENS, count_weights
from catome_core import AdaptiveMerge, CheckpointSchedule, TokenGrid
from zoo.noise import noise
from zoo.unets import predict as run
from zoo.unets import sd_unet

FREE = DeviceRates(flops=1.0, attention_flops=1.0, bandwidth=float("inf"), launch=0.0)
HALF = MergeRecipe(AdaptiveMerge(-1, capacity=0.25, spare="fill"))


@pytest.fixture(autouse=True)
def merging_is_free() -> None:
    """Here it costs what it costs: see conftest.py."""


# Arithmetic, against PyTorch's own count of what runs.


def meta_site(channels: int = 48, heads: int = 4) -> MergeSite:
    with torch.device("meta"):
        block = BasicTransformerBlock(channels, heads, channels // heads, cross_attention_dim=32)
    return MergeSite("block", block, block.attn1, nn.Identity(), layout=LAYOUT)


def counted(module: nn.Module, *inputs: Tensor, **options: Any) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs, **options)
    return counter.get_total_flops()


@pytest.mark.parametrize("removed", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("scope", ["attention", "keys", "block"])
def test_saving_is_what_the_shorter_sequence_does_not_compute(scope, removed):
    site, tokens = meta_site(), 64
    full, short = (torch.empty(1, count, 48, device="meta") for count in (tokens, int(tokens * (1 - removed))))
    text = {"encoder_hidden_states": torch.empty(1, TEXT_TOKENS, 32, device="meta")}
    if scope == "block":
        saved = counted(site.block, full, **text) - counted(site.block, short, **text)
    elif scope == "attention":
        saved = counted(site.attention, full) - counted(site.attention, short)
    else:
        saved = counted(site.attention, full) - counted(site.attention, full, encoder_hidden_states=short)
    assert sum(SCOPES[scope].saved_flops(count_weights(site), tokens, removed)) == saved


def test_adapters_and_lower_precision_leave_the_count_alone():
    site = meta_site()
    halved = count_weights(site)._replace(itemsize=2)
    site.block.half()
    assert count_weights(site) == halved


# Time.


def seconds(machine: DeviceRates, recipe: MergeRecipe = HALF, side: int = 16, batch: int = 2) -> Prediction:
    return predict(count_weights(meta_site()), TokenGrid((side, side)), batch, recipe, machine)


def test_prediction_grows_with_batch_and_tokens():
    machine = DeviceRates(1e9, 1e9, 1e9, 0.0)
    assert seconds(machine, batch=4).saved == pytest.approx(2 * seconds(machine).saved)
    # Between linear and quadratic in the tokens.
    assert 4 < seconds(machine, side=32).saved / seconds(machine).saved < 16


def test_what_a_faster_machine_and_a_thriftier_recipe_change():
    machine = DeviceRates(1e9, 1e9, 1e9, 1e-6)
    usual = seconds(machine)
    assert seconds(replace(machine, flops=2e9, attention_flops=2e9)).saved == pytest.approx(usual.saved / 2)
    for thrifty in (replace(machine, launch=0.0), replace(machine, bandwidth=1e12)):
        assert seconds(thrifty).overhead < usual.overhead and seconds(thrifty).saved == pytest.approx(usual.saved)
    rarer = replace(HALF, schedule=CheckpointSchedule((0,), of=50))
    nearer = replace(HALF, policy=replace(HALF.policy, radius=1))
    for recipe in (rarer, nearer, replace(HALF, scope="keys")):
        assert seconds(machine, recipe).overhead < usual.overhead
    assert seconds(machine, replace(HALF, scope="keys")).saved < usual.saved
    assert seconds(machine, replace(HALF, scope="block")).saved > usual.saved


@pytest.mark.parametrize(("capacity", "share"), [(0.0, 0.75), (0.25, 0.5), (0.5, 0.25), (None, 0.5)])
def test_saving_is_that_of_the_recipes_capacity(capacity, share):
    recipe = MergeRecipe(AdaptiveMerge(-1, capacity, spare="fill"))
    work = count_weights(meta_site())
    assert predict(work, TokenGrid((8, 8)), 1, recipe, FREE).saved == sum(
        SCOPES["attention"].saved_flops(work, 64, share)
    )


def test_ceiling_is_of_the_whole_block():
    half, work = seconds(FREE, replace(HALF, scope="block"), batch=1), count_weights(meta_site())
    whole = sum(SCOPES["block"].saved_flops(work, 256, 1.0))
    assert half.ceiling_50 == pytest.approx(whole / (whole - half.saved))
    assert half.ceiling_75 > half.ceiling_50 > seconds(FREE).ceiling_50 > 1


# Levels.


@pytest.mark.parametrize("size", [(16, 16), (18, 22), (17, 30)])
def test_grid_at_a_size_is_the_one_that_is_called(size):
    network, seen = sd_unet(), {}
    sites = at_size(find_sites(network), size)
    for site in sites:
        site.host.register_forward_pre_hook(
            lambda _, args, kwargs, name=site.name: seen.update({name: tuple(args[0].shape[-2:])}), with_kwargs=True
        )
    with torch.no_grad():
        run(network, noise(1, 4, *size))
    assert {site.name: site.shape for site in sites} == seen


@pytest.mark.parametrize(("sample_size", "shape"), [(16, (16, 16)), ((12, 20), (12, 20)), (None, None)])
def test_default_grid_comes_from_the_networks_size(sample_size, shape):
    assert find_sites(sd_unet(sample_size=sample_size))[0].shape == shape


def test_blocks_of_a_network_without_a_default_size_count_as_all_of_it():
    network = sd_unet(sample_size=None)
    with torch.no_grad(), attach(network, replace(HALF, levels=(1,))) as session:
        session.begin_step(0, 2)
        run(network, noise(1, 4, 16, 16))
    assert session.summary().speedup is not None


def test_levels_that_gain_enough_win_and_no_other():
    gains = {1: LevelGain(9.0, 1.0), 2: LevelGain(4.0, 2.0), 4: LevelGain(2.9, 1.0), 8: LevelGain(1.0, 2.0)}
    assert winning_levels(gains) == [1, 2]
    assert winning_levels({1: LevelGain(1.0, 1.0)}) == winning_levels({}) == []
