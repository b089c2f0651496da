"""One life-cycle of progressive merging, the same for every vision transformer: attach, run, fail, detach."""

import pytest
import torch

from catome_adapters import RECIPES, attach, find_sites
from probes import Interrupted, anatomy, failing
from running import assert_close, progressive_recipe
from zoo.vits import SIZES, VITS, images

TOME = RECIPES["tome"]

pytestmark = pytest.mark.usefixtures("without_gradients")


def test_features_and_logits_keep_their_shape_and_change(vit, network):
    unpatched = vit.call(network), network(images())
    with attach(network, TOME):
        merged = vit.call(network), network(images())
    for some, others in zip(merged, unpatched, strict=True):
        assert some.shape == others.shape and some.isfinite().all()
        assert not torch.allclose(some, others, rtol=1e-3, atol=1e-4)


def test_features_between_the_blocks_are_refused_until_detach(network):
    with attach(network, TOME), pytest.raises(ValueError, match=r'merged \(blocks.0 to 2\): use RECIPES\["vit"\]'):
        network.forward_intermediates(images())
    assert len(network.forward_intermediates(images(), intermediates_only=True)) == 3


def test_detach_restores_exactly(vit, network):
    before, unpatched = anatomy(network), vit.call(network)
    with attach(network, TOME):
        vit.call(network)
        assert list(network.state_dict()) == before["state_dict"]
        with pytest.raises(RuntimeError, match=r"call its detach\(\) first"):
            attach(network, TOME)
    assert anatomy(network) == before
    assert torch.equal(vit.call(network), unpatched)


def test_failed_call_leaves_nothing_behind(vit, network):
    with attach(network, TOME):
        expected = vit.call(network)
        with failing(network.blocks[1].attn), pytest.raises(Interrupted):
            vit.call(network, seed=1)
        assert torch.equal(vit.call(network), expected)


def test_a_call_that_failed_in_a_feed_forward_leaves_nothing_to_one_with_too_few_tokens_to_merge():
    vit, network = VITS["DINOv3"], VITS["DINOv3"].network(dynamic_img_size=True)
    with attach(network, TOME):
        expected = vit.call(network, size=(4, 4))
        with failing(network.blocks[1].mlp), pytest.raises(Interrupted):
            vit.call(network)
        assert torch.equal(vit.call(network, size=(4, 4)), expected)


def test_other_batches_and_sizes_follow_one_another():
    vit, network = VITS["DINOv3"], VITS["DINOv3"].network(dynamic_img_size=True)
    with attach(network, TOME) as session:
        together = vit.call(network, batch=3)
        assert vit.call(network, size=SIZES[1]).shape == (2, 5 + 60, 24)
        assert "1 x 60" in session.report() and "scope progressive" in session.report()
        assert_close(vit.call(network, batch=1), together[:1])


def test_a_gap_between_sites_is_unmerged():
    network = VITS["DINOv3"].network(depth=4)
    sites = [site for site in find_sites(network) if site.name != "blocks.2"]
    seen: list[int] = []
    for block in network.blocks:
        block.mlp.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    with attach(network, progressive_recipe(0.0), sites=sites):
        network(images())
    assert seen == [5 + 32, 5 + 16, 5 + 64, 5 + 32]
