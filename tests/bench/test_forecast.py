"""What merging is predicted to gain in a model, from its configuration; and `catome plan`."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from catome_adapters import RECIPES, CalibratedRecipe, find_sites, identify_sites
from catome_adapters.recipes.calibrated import Recipe
from catome_bench.cli import app
from catome_bench.commands.options import find_recipe
from catome_bench.commands.plan import verdict
from catome_bench.models.weights import SHIPPED
from catome_bench.planning.blueprint import Blueprint, read_blueprint
from catome_bench.planning.forecast import Forecast, forecast
from catome_bench.planning.grids import sites_at
from catome_core import AdaptiveMerge
from tiers import tiered
from zoo.architecture import Architecture
from zoo.encoders import ENCODERS, Encoder, image_and_text
from zoo.transformers import ALL_ARCHITECTURES

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
WAN = {"_class_name": "WanTransformer3DModel", "num_attention_heads": 2, "num_layers": 2, "ffn_dim": 512}
FLUX = {"_class_name": "FluxTransformer2DModel", "num_layers": 1, "num_single_layers": 2, "num_attention_heads": 2}
TINY_UNET = {
    "sample_size": 16,
    "block_out_channels": (32, 32),
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


@pytest.fixture(autouse=True)
def merging_is_free() -> None:
    """Here it costs what it costs: see conftest.py."""


def folder(path: Path, **config: Any) -> Path:
    """A network in diffusers format, without weights."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"} | config))
    return path


CEILINGS = [
    (SD15, 512, {"attention": (1.12, 1.16), "block": (1.17, 1.25)}),
    (SD15, 1024, {"attention": (1.39, 1.55), "block": (1.45, 1.65)}),
    # 1.67 and 2.40 where the text's keys and values are counted as image tokens.
    (SDXL, 1024, {"attention": (1.18, 1.26), "block": (1.66, 2.36)}),
]


@pytest.mark.parametrize(
    ("config", "pixels", "published"), tiered(CEILINGS, CEILINGS[:1]), ids=["sd15-512", "sd15-1024", "sdxl-1024"]
)
def test_ceilings_of_known_networks(tmp_path, config, pixels, published):
    result = look_at(folder(tmp_path / "unet", **config), height=pixels, width=pixels)
    sites = [one.site for one in result.sites if config is SDXL or one.site.level == 1]
    for scope, ceilings in published.items():
        assert tuple(round(result.ceiling(sites, removed, scope), 2) for removed in (0.5, 0.75)) == ceilings


def look_at(path: Path | str, *, recipe: Recipe = RECIPES["default"], device: str = "cpu", **sides: int) -> Forecast:
    pixels = sides.get("frames"), sides.get("height"), sides.get("width")
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    return forecast(read_blueprint(str(path), dtype=dtype), pixels, recipe, device)


def test_shares_are_those_that_torch_counts(tmp_path):
    """The arithmetic of a site is that of its modules, and that of a transformer is nearly all in its blocks."""
    unet = look_at(folder(tmp_path / "unet", **TINY_UNET), height=128, width=128)
    network = read_blueprint(str(tmp_path / "unet")).networks[""]
    inputs = {"sample": torch.zeros(1, 4, 16, 16), "timestep": 1, "encoder_hidden_states": torch.zeros(1, 77, 32)}
    counted = count(network, **inputs)
    site = unet.sites[0].site
    assert unet.share([site], "attention") == pytest.approx(counted[f"{site.name}.attn1"] / counted[""], rel=1e-6)
    dit = look_at("shipped/dit")
    network = read_blueprint("shipped/dit").networks["transformer"]
    one = torch.ones(1, dtype=torch.int64)
    counted = count(network, hidden_states=torch.zeros(1, 12, 64, 64), timestep=one, class_labels=one)
    assert sum(dit.total) == pytest.approx(counted[""], rel=0.03)


def count(network: Any, **inputs: Any) -> dict[str, int]:
    """FLOPs by module path, counted on the meta device."""
    tensors = {name: value.to("meta") for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(**inputs | tensors)
    modules = {name.partition(".")[2]: sum(kinds.values()) for name, kinds in counter.get_flop_counts().items()}
    return modules | {"": counter.get_total_flops()}


@pytest.mark.parametrize(
    "architecture", tiered(ALL_ARCHITECTURES.values(), [*ALL_ARCHITECTURES.values()][::4]), ids=ALL_ARCHITECTURES
)
def test_every_transformer_is_planned_on_the_grid_that_it_is_called_with(architecture: Architecture, tmp_path):
    network, latents = architecture.network(), architecture.sizes[1]
    network.save_config(tmp_path)
    built = read_blueprint(str(tmp_path)).networks[""]
    assert {parameter.device.type for parameter in built.parameters()} == {"meta"}
    packed = len(architecture.sample(1, latents)) == 3 and len(latents) == 2
    *frames, height, width = (side * 2 for side in latents) if packed else latents
    pixels = (1 + 4 * (frames[0] - 1) if frames else None, 8 * height, 8 * width)
    sites = sites_at(built, pixels, (8, 4))
    wanted = find_sites(network)
    assert [site.name for site in sites] == [site.name for site in wanted]
    arguments = architecture.inputs(size=latents)
    for site, called in zip(sites, wanted, strict=True):
        measured = called.grid_of(arguments)
        assert site.shape == getattr(measured, "shape", measured)
    everywhere = replace(RECIPES["todo"], levels="all")
    found = verdict(forecast(Blueprint({"": built}, (8, 4)), pixels, everywhere, "cpu"), "mine")
    parts = ", ".join(dict.fromkeys(site.name.partition(".")[0] for site in wanted))
    assert re.match(rf"expected \d.* on cpu with 'mine', at .* of the keys; attach at level 1: {parts}\n", found)


def test_the_speed_up_is_that_of_the_sites_that_merge(tmp_path):
    """A level that loses is left alone by "auto", and costs time where a recipe insists."""
    path = folder(tmp_path / "unet", **TINY_UNET | {"sample_size": 8})
    small = look_at(path, device="cuda")
    assert not any(one.merges for one in small.sites) and small.speedup == 1
    insisting = look_at(path, recipe=replace(RECIPES["paper"], levels="all"), device="cuda")
    assert any(one.merges for one in insisting.sites) and insisting.speedup < 1
    shipped = look_at("shipped")
    gain = sum(one.prediction.gain for one in shipped.sites if one.site.level == 1)
    assert shipped.levels == [1] and shipped.speedup == pytest.approx(shipped.seconds / (shipped.seconds - gain))


def test_steps_that_do_not_merge_gain_nothing():
    """A quarter of the run, as the verdict says."""
    always = replace(RECIPES["todo"], levels="all")
    later = replace(always, during=(0.75, 1.0))
    whole, part = (look_at("shipped/dit", recipe=recipe) for recipe in (always, later))
    shares = [1 - 1 / result.speedup for result in (whole, part)]
    assert shares[0] > 0.1 and shares[1] == pytest.approx(shares[0] / 4)
    assert "at a quarter of the keys; attach" in verdict(whole, "mine")
    assert "at a quarter of the keys, in 25% of the steps; attach" in verdict(part, "mine")


def test_cells_that_change_gain_in_each_part_what_they_gain_alone():
    """A quarter of the run with a quarter of the keys, the rest with a sixteenth."""
    quarter = replace(RECIPES["todo"], levels="all")
    recipes = [quarter, replace(quarter, stride=4), replace(quarter, later=((0.25, 4),))]
    results = [look_at("shipped/dit", recipe=recipe) for recipe in recipes]
    first, then, both = (1 - 1 / result.speedup for result in results)
    assert 0.1 < first < both < then and both == pytest.approx(first / 4 + 3 * then / 4)
    assert results[2].kept == pytest.approx(1 / 16 + 3 / 64)
    assert results[2].sites[0].prediction.saved == pytest.approx(
        sum(share * result.sites[0].prediction.saved for share, result in zip((1 / 4, 3 / 4), results[:2], strict=True))
    )


def test_a_part_of_the_run_that_is_too_small_to_gain_counts_as_unmerged():
    """With all keys in the first half."""
    half = look_at("shipped/dit", recipe=replace(RECIPES["todo"], during=(0.5, 1.0), levels="top"))
    later = look_at("shipped/dit", recipe=replace(RECIPES["todo"], stride=1, later=((0.5, 2),), levels="top"))
    assert later.speedup == pytest.approx(half.speedup) and later.kept == pytest.approx((1 + 1 / 4) / 2)


def test_two_networks_of_a_pipeline_are_forecast_together(tmp_path):
    for name in ("transformer", "transformer_2"):
        folder(tmp_path / name, **WAN)
    both = look_at(tmp_path, frames=5, height=64, width=64)
    one = look_at(tmp_path / "transformer", frames=5, height=64, width=64)
    assert len({site.site.name for site in both.sites}) == 2 * len(one.sites)
    assert sum(both.total) == 2 * sum(one.total)
    assert both.speedup == pytest.approx(one.speedup)


# The command.


def plan(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("recipe", tiered([recipe for recipe in RECIPES if recipe != "tome"], ["balanced", "adaptive"]))
def test_plan_names_every_transformer_between_the_verdict_and_the_ceiling(recipe):
    lines = plan("shipped", "--recipe", recipe, "--height", 64, "--width", 96, "--device", "cpu").splitlines()
    assert re.match(
        rf"expected \d\.\d\dx on cpu with '{recipe}', (at .* of|if half of) the (tokens|keys)( merge)?; "
        r"attach at level 1: down_blocks.0, up_blocks.2$",
        lines[0],
    )
    assert re.match(r"it holds .* between steps, and compiles to (one graph|two graphs)", lines[1])
    for site in find_sites(read_blueprint("shipped").networks["unet"]):
        assert any(line.startswith(f" {site.name.partition('.transformer')[0]} ") for line in lines)
    assert lines[-1].startswith("the model's ceiling, all levels: attention 1.")
    assert any(" 1,536 " in line for line in lines)  # 64 x 96 pixels, two pixels a latent


def test_plan_knows_timm_models():
    output = plan("vit_small_patch16_224", "--device", "cpu")
    assert "with 'vit', at half of the tokens; attach at level 1: blocks\n" in output
    assert "scope block" in output and " 197 " in output
    assert " 393 " in plan("timm:vit_small_patch16_224", "--height", 448, "--width", 224, "--device", "cpu")
    assert plan("vit_small_patch16_224", "--recipe", "tome").startswith("'tome' merges on from block to block")


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
def test_plan_knows_every_vit_of_transformers_from_its_configuration(encoder: Encoder, tmp_path):
    network = encoder.network()
    network.config.architectures = [type(network).__name__]
    network.config.save_pretrained(tmp_path)
    built = read_blueprint(str(tmp_path))
    wanted = find_sites(network)
    assert not built.denoises
    assert [(site.name, site.shape, site.prefix) for site in sites_at(built.networks[""], (None,) * 3, (1, 1))] == [
        (site.name, site.shape, site.prefix) for site in wanted
    ]
    assert f" {encoder.prefix + 64} " in plan(tmp_path, "--device", "cpu")
    assert f" {encoder.prefix + 16 * 16} " in plan(tmp_path, "--device", "cpu", "--height", 64)


def test_plan_knows_the_vision_encoder_of_a_model_of_images_and_text(tmp_path):
    image_and_text("CLIP").config.save_pretrained(tmp_path)
    output = plan(tmp_path, "--device", "cpu", "--height", 64)
    assert "vision_model.encoder.layers" in output and f" {1 + 16 * 16} " in output


def test_shipped_models_have_short_names():
    assert plan("dit", "--device", "cpu") == plan("shipped/dit", "--device", "cpu")


@pytest.mark.thorough
def test_plan_reads_the_scale_from_the_vae(tmp_path):
    folder(tmp_path / "unet", **TINY_UNET)
    folder(tmp_path / "vae", block_out_channels=(8, 8, 8))
    assert " 1,024 " in plan(tmp_path, "--height", 128, "--width", 128)
    assert " 4,096 " in plan(tmp_path, "--height", 128, "--width", 128, "--scale", 2)
    assert " 256 " in plan(tmp_path / "unet", "--device", "cuda")


def test_plan_of_a_size_at_which_everything_loses_says_so(tmp_path):
    folder(tmp_path / "unet", **TINY_UNET)
    assert plan(tmp_path, "--device", "cuda").startswith("no gain expected on cuda with 'default': at this size")


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        ({"_class_name": "CLIPTextModel"}, [], "describes a CLIPTextModel; expected a network of diffusers"),
        ({"_class_name": 3}, [], "describes a 3; expected a network of diffusers"),
        ({"_class_name": "AutoencoderKL"}, [], "no tokens to merge in AutoencoderKL"),
        ({"block_out_channels": 3}, [], "describes no UNet2DConditionModel that can be built: "),
        ({"addition_embed_type": "image"}, [], "addition_embed_type is 'image'; expected one of"),
        ({"num_class_embeds": 10}, [], "num_class_embeds is 10; expected one of"),
        ({"sample_size": None}, ["--height", "64"], "names no size: pass --width"),
        ({}, ["--height", "65"], "height is 65; expected a multiple of 8 pixels"),
        ({}, ["--frames", "65"], "takes single pictures: leave --frames out"),
        ({}, ["--recipe", "none"], "'none'; expected one of"),
        ({}, ["--recipe", "tome"], "cannot merge in scope='progressive'"),
        (FLUX, [], "names no size: pass --height and --width"),
        (FLUX, ["--height", "1000", "--width", "1000"], "height is 1000; expected a multiple of 16 pixels"),
        (WAN, ["--height", "64", "--width", "64"], "names no size: pass --frames"),
    ],
)
def test_plan_refuses_what_it_cannot_count(tmp_path, config, arguments, message):
    addition = {"addition_time_embed_dim": 8, "encoder_hid_dim": 32}
    unet = {"sample_size": 8, "block_out_channels": (32,) * 4} | addition
    path = folder(tmp_path / "unet", **config if "num_layers" in config else unet | config)
    assert message in refused(path, *arguments)


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    return result.stderr.splitlines()[-1]


@pytest.mark.parametrize(("text", "message"), [("[]", "holds []; expected an object"), ("{", "is not JSON: ")])
def test_a_broken_configuration_is_refused(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    assert message in refused(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(TINY_UNET | {"_class_name": "UNet2DConditionModel"}))
    (tmp_path / "unet").mkdir()
    (tmp_path / "config.json").rename(tmp_path / "unet" / "config.json")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(text)
    assert message in refused(tmp_path)


def test_a_model_that_cannot_be_found_is_refused_with_what_was_tried(tmp_path):
    assert "has neither unet/config.json, transformer/config.json" in refused(tmp_path)
    message = "timm has no model 'vit_tinny_patch16_224'; expected one of timm.list_models(), such as ['vit_tiny"
    assert message in refused("timm:vit_tinny_patch16_224")
    assert (
        "is no folder, none of ('unet', 'dit', 'dit-patch1'), no model of timm, and neither on the hub nor in its cache"
        in refused("/no/such/folder")
    )


def test_a_model_on_the_hub_is_read_from_its_configurations(monkeypatch):
    def download(name: str, **options: Any) -> str:
        assert name == "somebody/model" and not options["local_files_only"]
        return str(SHIPPED / "unet")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *args, **options: object())
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert plan("somebody/model", "--device", "cpu") == plan("shipped", "--device", "cpu")


def test_calibrated_recipe_is_forecast_site_by_site(tmp_path):
    sites = find_sites(read_blueprint("shipped/dit").networks["transformer"])
    fixed = replace(RECIPES["vit"], levels="all")
    quarter = replace(fixed, policy=AdaptiveMerge(threshold=-1, capacity=0.5, spare="fill"))
    where = {sites[1].name: fixed, sites[2].name: fixed, sites[4].name: quarter}
    path = tmp_path / "recipe.json"
    CalibratedRecipe(identify_sites(sites), where).save(path)
    result = look_at("shipped/dit", recipe=find_recipe(str(path)))
    alone = {one: look_at("shipped/dit", recipe=one) for one in (fixed, quarter)}
    gains = [alone[where[name]].sites[index].prediction.gain for index, name in zip((1, 2, 4), where, strict=True)]
    assert [site.name for site in result.merging] == [*where]
    assert result.speedup == pytest.approx(result.seconds / (result.seconds - sum(gains)))
    text = verdict(result, "recipe.json")
    assert "2 recipes for 3 sites" in text and "two graphs" not in text
    with pytest.raises(ValueError, match=r"calibrated on 7 BasicTransformerBlock, \w+; this model has"):
        look_at("shipped/unet", recipe=find_recipe(str(path)))
