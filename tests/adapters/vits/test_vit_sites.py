"""Which blocks of timm's vision transformers are sites, and why others are not."""

import pytest
from timm import layers
from timm.models.cait import Cait
from timm.models.vision_transformer import (
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    VisionTransformer,
)
from timm.models.xcit import Xcit
from torch import nn

from catome_adapters import RECIPES, attach, find_sites
from probes import anatomy
from running import vit_recipe
from zoo.vits import VITS, images

pytestmark = pytest.mark.usefixtures("without_gradients")


def test_every_block_is_a_site_with_its_grid_and_its_prefix(vit, network):
    sites = find_sites(network)
    assert [site.name for site in sites] == [f"blocks.{index}" for index in range(len(network.blocks))]
    assert {site.shape for site in sites} == {(8, 8)}
    assert {site.prefix for site in sites} == {vit.prefix}
    assert not any(site.denoises for site in sites)


def make_with(block: type[nn.Module]) -> VisionTransformer:
    return VisionTransformer(img_size=32, patch_size=4, embed_dim=24, depth=2, num_heads=2, block_fn=block)


def make_differential() -> VisionTransformer:
    return VisionTransformer(img_size=32, patch_size=4, embed_dim=24, depth=2, num_heads=2, attn_layer="diff")


def make_talking_heads() -> Cait:
    return Cait(img_size=32, patch_size=4, embed_dim=24, depth=2, num_heads=2, num_classes=5)


def make_unfused() -> VisionTransformer:
    layers.set_fused_attn(False)
    try:
        return VITS["ViT"].network()
    finally:
        layers.set_fused_attn(True)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: make_with(ParallelScalingBlock), "ParallelScalingBlock has no self-attention `attn` over tokens `x`"),
        (lambda: make_with(ParallelThingsBlock), "ParallelThingsBlock has no self-attention `attn`"),
        (lambda: make_with(DiffParallelScalingBlock), "DiffParallelScalingBlock has no self-attention `attn`"),
        (make_differential, "DiffAttention subtracts two attentions"),
        (make_talking_heads, "TalkingHeadAttn does not call scaled_dot_product_attention"),
        (make_unfused, r"Attention does not call scaled_dot.*set its fused_attn = True"),
    ],
)
def test_block_whose_attention_cannot_be_changed_is_refused_with_the_reason(make, reason):
    network = make()
    before = anatomy(network)
    with pytest.raises(ValueError, match=rf"(?s)no tokens to merge.*blocks\.0: {reason}"):
        attach(network, RECIPES["vit"])
    assert anatomy(network) == before


def test_attention_over_channels_is_no_site():
    network = Xcit(img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=2, cls_attn_layers=1)
    with pytest.raises(ValueError, match="no tokens to merge in Xcit"):
        attach(network, RECIPES["vit"])


def test_attention_that_stops_being_fused_is_an_error(scope):
    network = VITS["BEiT"].network()
    with attach(network, vit_recipe(scope)):
        network.blocks[1].attn.fused_attn = False
        with pytest.raises((ValueError, RuntimeError), match=r"blocks\.1: Attention did not call|must match the size"):
            VITS["BEiT"].call(network)


def test_dropped_patches_are_refused():
    network = VITS["ViT"].network(patch_drop_rate=0.5).train()
    with attach(network, vit_recipe("block")), pytest.raises(ValueError, match=r"got 33 tokens.*grid of 8 x 8"):
        network(images())
