"""How much merging could save in a network, from its configuration; and `catome plan`."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from catome_adapters import RECIPES, find_sites
from catome_bench.cli import app
from catome_bench.measure.forecast import Forecast, build_network, forecast
from catome_bench.models.pipeline import SHIPPED_MODEL

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
    result = look_at(tmp_path, pixels, **config)
    sites = [site for site in result.sites if config is SDXL or site.level == 1]
    assert tuple(round(result.ceiling(sites, removed, scope), 2) for removed in (0.5, 0.75)) == published


def look_at(path: Path, pixels: int, **config: Any) -> Forecast:
    network = build_network(folder(path / "unet", sample_size=pixels // 8, **config))
    return forecast(network, (pixels // 8, pixels // 8), RECIPES["default"], "cpu")


def test_ceiling_with_everything_removed_is_what_the_blocks_are_of_the_network(tmp_path):
    result = look_at(tmp_path, 512, **SD15)
    site = result.sites[0]
    assert result.ceiling([site], 1.0, "attention") == pytest.approx(1 / (1 - result.share([f"{site.name}.attn1"])))


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
