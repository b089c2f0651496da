"""How much progressive merging merges, and what it leaves alone."""

import pytest
import torch
from torch import nn

from catome_adapters import attach, find_sites
from catome_bench.races.tome import publish
from catome_bench.races.vits import counts_of
from catome_core import TokenGrid
from running import assert_close, progressive_recipe
from zoo.noise import noise
from zoo.vits import VITS, images

pytestmark = pytest.mark.usefixtures("without_gradients")


@pytest.mark.parametrize("proportional", [True, False])
def test_class_token_after_two_blocks_is_that_of_the_published_method(proportional):
    """Further on, it is another half of the tokens that may merge: there, slots lose their order."""
    network = VITS["ViT"].network(depth=2, class_token=True, global_pool="token")
    with attach(network, progressive_recipe(0.3, proportional=proportional)) as session:
        logits = network(images())
        counts = counts_of(session)
    assert_close(logits, publish(network, counts, proportional)(images()))


def test_equal_tokens_merge_without_loss():
    """Groups of four equal tokens: two halvings lose nothing, if attention weighs keys by their sizes."""
    network = VITS["ViT"].network()
    network.pos_embed.zero_()
    patches = noise(1, 3, 4, 4, 4, 4, seed=1)  # 16 different patches of 4 x 4 pixels
    image = patches.repeat_interleave(4, 3).permute(0, 1, 2, 4, 3, 5).reshape(1, 3, 16, 64)
    network = with_grid(network, (16, 64))
    unpatched, sites = network.forward_features(image), find_sites(network)[:2]
    with attach(network, progressive_recipe(0.0), sites=sites) as session:
        assert_close(network.forward_features(image), unpatched)
        assert [row.slots for row in session.summary().rows] == [33, 17]
    with attach(network, progressive_recipe(0.0, proportional=False), sites=sites):
        assert not torch.allclose(network.forward_features(image), unpatched, rtol=1e-2, atol=1e-2)


def with_grid(network: nn.Module, size: tuple[int, int]) -> nn.Module:
    network.set_input_size(size)
    return network


def test_prefix_tokens_are_never_merged(vit, network):
    with attach(network, progressive_recipe(0.0)) as session:
        vit.call(network)
        plans = session.plans().values()
    for plan in plans:
        assert torch.equal(plan.slot[:, : vit.prefix], torch.arange(vit.prefix).expand(2, -1))
        assert (plan.size[:, : vit.prefix] == 1).all()


@pytest.mark.parametrize("capacity", [0.0, 0.2, 0.44])
def test_every_block_leaves_a_share_of_its_own_tokens(vit, network, capacity):
    with attach(network, progressive_recipe(capacity)) as session:
        vit.call(network)
        rows = session.summary().rows
    patches = 64
    for row in rows:
        assert row.tokens == vit.prefix + patches
        patches = -(-patches // 2) + min(patches // 2, TokenGrid((1, patches)).kept(capacity))
        assert row.slots == vit.prefix + patches
    assert [row.site for row in rows] == ["blocks.0", "blocks.1", "blocks.2"]


@pytest.mark.parametrize("capacity", [0.5, 1.0])
def test_capacity_of_half_is_the_unpatched_model_bit_by_bit(vit, network, capacity):
    unpatched = vit.call(network)
    with attach(network, progressive_recipe(capacity)) as session:
        assert torch.equal(vit.call(network), unpatched)
        assert session.summary().merged_fraction == 0


def test_a_block_with_two_tokens_or_one_still_runs():
    network = VITS["ViT"].network(img_size=(4, 8), depth=4)
    with attach(network, progressive_recipe(0.0)) as session:
        assert network(images(size=(4, 8))).isfinite().all()
        assert [row.slots for row in session.summary().rows] == [2, 2, 2, 2]
