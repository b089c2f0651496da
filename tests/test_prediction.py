"""What merging is predicted to save and cost, against what runs; and `catome plan`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from catome_adapters import RECIPES, MergeRecipe, MergeSite, find_sites, prediction
from catome_adapters.arithmetic import TEXT_TOKENS, count_saved, count_work
from catome_adapters.prediction import LevelGain, Machine, predict, winning_levels
from catome_adapters.unets import LAYOUT, at_size
from catome_bench.cli import app
from catome_bench.forecast import Forecast, build_network, foresee
from catome_bench.pipeline import SHIPPED_MODEL
from catome_core import AdaptiveMerge, CheckpointSchedule, TokenGrid
from models import noise, sd_unet
from models import predict as run

FREE = Machine(flops=1.0, attention_flops=1.0, bandwidth=float("inf"), launch=0.0)
HALF = MergeRecipe(AdaptiveMerge(-1, capacity=0.25, spare="fill"))
SD15 = {"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8, "cross_attention_dim": 768}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": (1, 2, 10),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@pytest.fixture(autouse=True)
def merging_is_free() -> None:
    """Here it costs what it costs: see conftest.py."""


def folder(path: Path, **config: Any) -> Path:
    """A network in diffusers format, without weights."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"} | config))
    return path


# Arithmetic, against PyTorch's own count of what runs.


def meta_site(channels: int = 48, heads: int = 4) -> MergeSite:
    with torch.device("meta"):
        block = BasicTransformerBlock(channels, heads, channels // heads, cross_attention_dim=32)
    return MergeSite("block", block, block.attn1, nn.Identity(), 1, layout=LAYOUT)


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
    assert sum(count_saved(count_work(site), tokens, removed, scope)) == saved


def test_adapters_and_lower_precision_leave_the_count_alone():
    site = meta_site()
    halved = count_work(site)._replace(itemsize=2)
    site.block.half()
    assert count_work(site) == halved


@pytest.mark.parametrize(
    ("config", "pixels", "scope", "published"),
    [
        (SD15, 512, "attention", (1.12, 1.16)),
        (SD15, 512, "block", (1.17, 1.25)),
        (SD15, 1024, "attention", (1.39, 1.55)),
        (SD15, 1024, "block", (1.45, 1.65)),
        (SDXL, 1024, "attention", (1.18, 1.26)),
        # 1.67 and 2.40 where the text's keys and values are counted as image tokens.
        (SDXL, 1024, "block", (1.66, 2.36)),
    ],
)
def test_ceilings_of_known_networks(tmp_path, config, pixels, scope, published):
    forecast = look_at(tmp_path, pixels, **config)
    sites = [site for site in forecast.sites if config is SDXL or site.level == 1]
    assert tuple(round(forecast.ceiling(sites, removed, scope), 2) for removed in (0.5, 0.75)) == published


def look_at(path: Path, pixels: int, **config: Any) -> Forecast:
    network = build_network(folder(path / "unet", sample_size=pixels // 8, **config))
    return foresee(network, (pixels // 8, pixels // 8), RECIPES["default"], "cpu")


def test_ceiling_with_everything_removed_is_what_the_blocks_are_of_the_network(tmp_path):
    forecast = look_at(tmp_path, 512, **SD15)
    site = forecast.sites[0]
    assert forecast.ceiling([site], 1.0, "attention") == pytest.approx(1 / (1 - forecast.share([f"{site.name}.attn1"])))


# Time.


def seconds(machine: Machine, recipe: MergeRecipe = HALF, side: int = 16, batch: int = 2) -> prediction.Prediction:
    return predict(count_work(meta_site()), TokenGrid((side, side)), batch, recipe, machine)


def test_prediction_grows_with_batch_and_tokens():
    machine = Machine(1e9, 1e9, 1e9, 0.0)
    assert seconds(machine, batch=4).saved == pytest.approx(2 * seconds(machine).saved)
    # Between linear and quadratic in the tokens.
    assert 4 < seconds(machine, side=32).saved / seconds(machine).saved < 16


def test_what_a_faster_machine_and_a_thriftier_recipe_change():
    machine = Machine(1e9, 1e9, 1e9, 1e-6)
    usual = seconds(machine)
    assert seconds(replace(machine, flops=2e9, attention_flops=2e9)).saved == pytest.approx(usual.saved / 2)
    for thrifty in (replace(machine, launch=0.0), replace(machine, bandwidth=1e12)):
        assert seconds(thrifty).overhead < usual.overhead and seconds(thrifty).saved == usual.saved
    rarer = replace(HALF, schedule=CheckpointSchedule((0,), of=50))
    nearer = replace(HALF, policy=replace(HALF.policy, radius=1))
    for recipe in (rarer, nearer, replace(HALF, scope="keys")):
        assert seconds(machine, recipe).overhead < usual.overhead
    assert seconds(machine, replace(HALF, scope="keys")).saved < usual.saved
    assert seconds(machine, replace(HALF, scope="block")).saved > usual.saved


@pytest.mark.parametrize(("capacity", "share"), [(0.0, 0.75), (0.25, 0.5), (0.5, 0.25), (None, 0.5)])
def test_saving_is_that_of_the_recipes_capacity(capacity, share):
    recipe = MergeRecipe(AdaptiveMerge(-1, capacity, spare="fill"))
    work = count_work(meta_site())
    assert predict(work, TokenGrid((8, 8)), 1, recipe, FREE).saved == sum(count_saved(work, 64, share, "attention"))


def test_ceiling_is_of_the_whole_block():
    half, work = seconds(FREE, replace(HALF, scope="block"), batch=1), count_work(meta_site())
    whole = sum(count_saved(work, 256, 1.0, "block"))
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


def test_levels_that_gain_enough_win_and_no_other():
    gains = {1: LevelGain(9.0, 1.0), 2: LevelGain(4.0, 2.0), 4: LevelGain(2.9, 1.0), 8: LevelGain(1.0, 2.0)}
    assert winning_levels(gains) == [1, 2]
    assert winning_levels({1: LevelGain(1.0, 1.0)}) == winning_levels({}) == []


# The command.


def plan(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("recipe", RECIPES)
def test_plan_of_the_shipped_model_names_every_transformer_and_ends_with_the_ceiling(recipe):
    output = plan("shipped", "--recipe", recipe, "--height", 64, "--width", 96)
    for site in find_sites(build_network(SHIPPED_MODEL)):
        assert site.name.partition(".transformer")[0] in output
    assert output.splitlines()[-1].startswith("the network's ceiling, all levels: attention 1.")
    assert " 1,536 " in output  # 64 x 96 pixels, two pixels a latent


def test_plan_reads_the_scale_from_the_vae(tmp_path):
    tiny = {"sample_size": 16, "block_out_channels": (32, 32), "cross_attention_dim": 32, "attention_head_dim": 4}
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    folder(tmp_path / "unet", **tiny, **blocks)
    folder(tmp_path / "vae", block_out_channels=(8, 8, 8))
    assert " 1,024 " in plan(tmp_path, "--height", 128, "--width", 128)
    assert " 4,096 " in plan(tmp_path, "--height", 128, "--width", 128, "--scale", 2)
    assert " 256 " in plan(tmp_path / "unet", "--device", "cuda")


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        ({"_class_name": "FluxTransformer2DModel"}, [], "a FluxTransformer2DModel; expected a UNet2DConditionModel"),
        ({"addition_embed_type": "image"}, [], "addition_embed_type is 'image'; expected one of"),
        ({"num_class_embeds": 10}, [], "num_class_embeds is 10; expected one of"),
        ({"sample_size": None}, ["--height", "64"], "pass --height and --width"),
        ({}, ["--height", "65"], "65 pixels are no multiple of 8"),
        ({}, ["--recipe", "none"], "'none'; expected one of"),
    ],
)
def test_plan_refuses_what_it_cannot_count(tmp_path, config, arguments, message):
    addition = {"addition_time_embed_dim": 8, "encoder_hid_dim": 32}
    path = folder(tmp_path / "unet", **{"sample_size": 8, "block_out_channels": (32,) * 4} | addition | config)
    result = CliRunner().invoke(app, ["plan", str(path), *arguments], env={"COLUMNS": "400", "TERMINAL_WIDTH": "400"})
    assert result.exit_code == 2 and message in result.output


def test_plan_of_a_folder_without_a_network_is_refused(tmp_path):
    result = CliRunner().invoke(app, ["plan", str(tmp_path)], env={"COLUMNS": "400", "TERMINAL_WIDTH": "400"})
    assert result.exit_code == 2 and "has neither unet/config.json nor config.json" in result.output
