"""Which blocks of a UNet are sites, and which levels a recipe chooses."""

import pytest
import torch

from catome_adapters import RECIPES, MergeRecipe, attach, find_sites
from zoo.noise import noise
from zoo.unet_pipelines import picture, sd_pipeline, sdxl_pipeline
from zoo.unets import controlnet, predict, sd_unet, sdxl_unet


@pytest.mark.parametrize(
    ("model", "levels", "expected"),
    [
        (sd_unet, "auto", {1}),
        (sd_unet, "top", {1}),
        (sd_unet, "all", {1, 2, 4}),
        (sd_unet, (2,), {2}),
        (sd_unet, (4, 1), {1, 4}),
        (sdxl_unet, "auto", {2}),
        (sdxl_unet, "top", {2}),
        (sdxl_unet, "all", {2, 4}),
    ],
)
def test_levels_choose_the_sites(model, levels, expected):
    network = model()
    with attach(network, MergeRecipe(levels=levels)) as session:
        chosen = [site.name for site in find_sites(network) if site.level in expected]
        assert [site.name for site in session.sites] == chosen and {site.level for site in session.sites} == expected


@pytest.mark.parametrize("model", [sd_unet, sdxl_unet], ids=["sd1", "sdxl"])
def test_level_is_how_much_coarser_the_image_is(model):
    network, seen = model(), {}
    sites = find_sites(network)
    for site in sites:
        site.host.register_forward_pre_hook(
            lambda _, args, kwargs, name=site.name: seen.update({name: args[0].shape[-1]}), with_kwargs=True
        )
    with torch.no_grad():
        predict(network, noise(1, 4, 16, 16))
    assert {site.name: 16 // site.level for site in sites} == seen


def test_sites_of_a_pipeline_are_its_networks():
    pipe = sd_pipeline()
    assert [site.name for site in find_sites(pipe)] == [site.name for site in find_sites(pipe.unet)]
    assert len(find_sites(controlnet(pipe.unet))) == 3


def test_attention_to_text_is_left_out_and_reported():
    with attach(sd_unet(only_cross_attention=(True, False, False)), MergeRecipe(levels="all")) as session:
        assert {site.level for site in session.sites} == {2, 4}
        heading, *left_out = session.report().partition("not attached, its `attn1` attends to text")[2].splitlines()
        assert heading == " (only_cross_attention):" and len(left_out) == 3


def test_pipeline_of_sdxl_draws_at_its_own_level():
    pipe = sdxl_pipeline()
    unpatched = picture(pipe)
    with attach(pipe, RECIPES["adaptive"]) as session:
        assert {site.level for site in session.sites} == {2}
        merged = picture(pipe)
    assert merged.isfinite().all() and not torch.equal(merged, unpatched)
    assert torch.equal(picture(pipe), unpatched)
