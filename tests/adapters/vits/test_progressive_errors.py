"""What progressive merging refuses."""

from dataclasses import replace

import pytest
import torch

from catome_adapters import RECIPES, MergeRecipe, attach, find_sites
from catome_core import AdaptiveMerge
from probes import anatomy
from running import progressive_recipe
from zoo.unets import sd_unet
from zoo.vits import VITS, images

TOME = RECIPES["tome"]

pytestmark = pytest.mark.usefixtures("without_gradients")


@pytest.mark.parametrize(
    "changes",
    [
        {"segment": 2},
        {"policy": AdaptiveMerge(threshold=-1, spare="fill")},
        {"policy": AdaptiveMerge(threshold=-1, capacity=0.4)},
        {"policy": AdaptiveMerge(threshold=-1, capacity=0.4, spare="fill", radius=1)},
    ],
)
def test_recipe_that_does_not_fit_is_refused(changes):
    with pytest.raises(ValueError, match=r'scope is .progressive. with .*RECIPES\["tome"\]'):
        replace(TOME, **changes)


def test_model_that_draws_every_token_is_refused():
    with pytest.raises(ValueError, match=r"down_blocks.*scope='progressive': it merges for good"):
        attach(sd_unet(), TOME)


def test_block_without_a_known_feed_forward_is_refused():
    network = VITS["ViT"].network()
    before = anatomy(network)
    sites = [replace(site, layout=replace(site.layout, feed_forward=())) for site in find_sites(network)]
    with pytest.raises(ValueError, match=r"blocks\.0.*the site does not say where Block has its feed-forward"):
        attach(network, TOME, sites=sites)
    assert anatomy(network) == before


def test_attention_that_is_not_fused_is_refused_and_leaves_nothing_behind():
    network = VITS["ViT"].network()
    with attach(network, progressive_recipe(0.5)):
        expected = network(images())
        network.blocks[0].attn.fused_attn = False
        with pytest.raises(ValueError, match=r"blocks\.0: Attention did not call scaled_dot_product_attention"):
            network(images())
        network.blocks[0].attn.fused_attn = True
        assert torch.equal(network(images()), expected)
    assert torch.overrides._get_current_function_mode_stack() == []


def test_recipe_travels_as_json():
    assert MergeRecipe.from_json(TOME.to_json()) == TOME
