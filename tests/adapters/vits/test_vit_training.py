"""Gradients of vision transformers, and gradient checkpointing."""

import pytest
import torch
from torch import Tensor, nn

from catome_adapters import RECIPES, attach
from running import vit_recipe
from zoo.vits import VITS, images

KINDS = ("ViT", "DINOv3", "RoPE mixed", "BEiT")


def backward(network: nn.Module) -> Tensor:
    network.zero_grad()
    network(images()).square().sum().backward()
    return network.blocks[0].mlp.fc1.weight.grad.clone()


@pytest.mark.parametrize("name", KINDS)
def test_gradient_checkpointing_gives_the_same_gradients(name, scope):
    network = VITS[name].network()
    with attach(network, vit_recipe(scope)):
        expected = backward(network)
        network.set_grad_checkpointing()
        torch.testing.assert_close(backward(network), expected)


def test_gradient_checkpointing_of_a_segment_is_refused():
    network = VITS["ViT"].network()
    network.set_grad_checkpointing()
    refused = pytest.raises(ValueError, match="gradient checkpointing")
    with attach(network, vit_recipe("block", segment=2)), refused:
        network(images())


def test_gradients_flow_through_every_progressive_merge():
    network = VITS["BEiT"].network()
    with attach(network, RECIPES["tome"]):
        network(images()).square().sum().backward()
    assert all(block.mlp.fc1.weight.grad.abs().sum() > 0 for block in network.blocks)
    assert network.patch_embed.proj.weight.grad.isfinite().all()


def test_gradient_checkpointing_of_progressive_merging_is_refused():
    network = VITS["ViT"].network()
    network.set_grad_checkpointing()
    with attach(network, RECIPES["tome"]), pytest.raises(ValueError, match="gradient checkpointing"):
        network(images())
