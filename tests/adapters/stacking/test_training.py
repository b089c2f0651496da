"""Training under a session: gradients, and gradient checkpointing."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from catome_adapters import MergeRecipe, attach
from running import ONCE, TOTAL, assert_same, unet_recipe
from tiers import tiered
from zoo.noise import noise
from zoo.transformers import ARCHITECTURES
from zoo.unets import SD


def check_gradients(model: Any, recipe: MergeRecipe) -> None:
    """They are finite, and the same with gradient checkpointing."""
    network = model.network()
    with attach(network, recipe) as session:
        stored = gradients(model, network, session, checkpointing=False)
        assert all(gradient.isfinite().all() for gradient in stored)
        assert any(gradient.any() for gradient in stored)
        assert_same(gradients(model, network, session, checkpointing=True), stored, tolerance=1e-4)


def gradients(model: Any, network: Any, session: Any, *, checkpointing: bool) -> list[Tensor]:
    """Of all weights, at the first step of a run."""
    network.train()
    network.zero_grad()
    network.enable_gradient_checkpointing() if checkpointing else network.disable_gradient_checkpointing()
    session.reset()
    session.begin_step(0, TOTAL)
    model.predict(network).square().sum().backward()
    return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("destination", tiered(["top-left", "random", "rotate"], ["top-left"]))
def test_gradients_of_a_unet_pass_and_survive_gradient_checkpointing(scope, destination):
    check_gradients(SD, unet_recipe(scope, destination=destination))


@pytest.mark.parametrize("name", tiered(["PixArt", "SD3", "Flux", "Wan", "HunyuanVideo"], ["Flux", "Wan"]))
def test_gradients_of_a_transformer_pass_and_survive_gradient_checkpointing(recipe, name):
    check_gradients(ARCHITECTURES[name], recipe)


# Rotary embeddings and root-mean-square norms round to single precision.
EXACT = {"PixArt": {}, "SD3": {"qk_norm": None}}


@pytest.mark.parametrize("name", EXACT)
def test_gradient_is_the_slope_of_the_merged_network(recipe, name):
    """Along a random direction, while the plan of the first step is kept."""
    subject = ARCHITECTURES[name]
    network = subject.network(**EXACT[name]).double()
    inputs = {name: as_double(value) for name, value in subject.inputs(batch=1).items()}
    sample = inputs["hidden_states"].requires_grad_()
    direction = noise(*sample.shape, seed=1).double()

    def loss(step: int, distance: float) -> Tensor:
        session.begin_step(step, TOTAL)
        moved = sample + distance * direction
        return network(**inputs | {"hidden_states": moved}, return_dict=False)[0].square().sum()

    with attach(network, replace(recipe, schedule=ONCE)) as session:
        slope = torch.autograd.grad(loss(0, 0.0), sample)[0].mul(direction).sum()
        with torch.no_grad():
            expected = (loss(1, 1e-4) - loss(2, -1e-4)) / 2e-4
    torch.testing.assert_close(slope, expected, rtol=1e-5, atol=0.0)


def as_double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
