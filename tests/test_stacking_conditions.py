"""Beside a session on a transformer: IP-Adapters and ControlNets."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import (
    FluxControlNetModel,
    SD3ControlNetModel,
)
from diffusers.models.attention_processor import JointAttnProcessor2_0, SD3IPAdapterJointAttnProcessor2_0
from torch import Tensor, nn

from architectures import ARCHITECTURES, Architecture
from catome_adapters import MergeRecipe, attach, find_sites
from models import noise, seeded
from scopes import SCOPES
from stacks import STEPS, assert_same, call, differ, make_recipe, run, untold


@pytest.fixture(params=SCOPES)
def recipe(request) -> MergeRecipe:
    return make_recipe(request.param)


# IP-Adapter.


def load_flux_ip_adapter(network) -> None:
    layers = {
        f"{index}.to_{part}_ip.{kind}": noise(*shape, seed=index)
        for index in range(network.config.num_layers)
        for part in ("k", "v")
        for kind, shape in {"weight": (network.inner_dim, 8), "bias": (network.inner_dim,)}.items()
    }
    projection = {"proj.weight": noise(4 * 8, 6), "proj.bias": noise(4 * 8)}
    norm = {"norm.weight": torch.ones(8), "norm.bias": torch.zeros(8)}
    state = {"image_proj": projection | norm, "ip_adapter": layers}
    network._load_ip_adapter_weights(state, low_cpu_mem_usage=False)


def flux_image() -> dict[str, Any]:
    # The network takes the embeddings out of the dictionary.
    return {"joint_attention_kwargs": {"ip_adapter_image_embeds": [noise(2, 1, 6)]}}


@torch.no_grad()
def run_with_image(subject: Architecture, network: nn.Module, session: Any, image: Callable[[], dict]) -> list[Tensor]:
    predictions = []
    for step in range(STEPS):
        if session is not None:
            session.begin_step(step, STEPS)
        predictions.append(call(subject, network, step, **image()))
    return predictions


@pytest.mark.parametrize("segment", [1, 2])
def test_ip_adapter_of_flux_before_and_after_attach(recipe, segment):
    if segment > 1 and recipe.scope != "block":
        pytest.skip("only whole blocks have segments")
    subject, recipe = ARCHITECTURES["Flux"], replace(recipe, segment=segment)
    before, after = subject.network(), subject.network()
    load_flux_ip_adapter(before)
    with attach(before, recipe) as session:
        expected = run_with_image(subject, before, session, flux_image)
    with attach(after, recipe) as session:
        without = run(subject, after, session)
        load_flux_ip_adapter(after)
        assert_same(run_with_image(subject, after, session, flux_image), expected)
    assert differ(expected, without)
    assert differ(expected, run_with_image(subject, after, None, flux_image))


def load_sd3_ip_adapter(network) -> None:
    with seeded(2):
        for block in network.transformer_blocks:
            width = network.inner_dim
            block.attn.processor = SD3IPAdapterJointAttnProcessor2_0(width, 8, 8, 8)
            if block.attn2 is not None:
                block.attn2.processor = JointAttnProcessor2_0()


def sd3_image() -> dict[str, Any]:
    return {"joint_attention_kwargs": {"ip_hidden_states": noise(2, 4, 8), "temb": noise(2, 8, seed=1)}}


@pytest.mark.parametrize("recipe", [untold("attention"), untold("block"), make_recipe("keys")], ids=SCOPES)
def test_ip_adapter_of_sd3(recipe):
    subject = ARCHITECTURES["SD3"]
    network = subject.network()
    load_sd3_ip_adapter(network)
    unmerged = run_with_image(subject, network, None, sd3_image)
    with attach(network, replace(recipe, policy=replace(recipe.policy, threshold=1.0, capacity=None))) as session:
        assert_same(run_with_image(subject, network, session, sd3_image), unmerged, tolerance=1e-5)
    with attach(network, recipe) as session:
        with_image = run_with_image(subject, network, session, sd3_image)
        assert differ(with_image, run(subject, network, session)) and differ(with_image, unmerged)


SECOND = "SD3IPAdapterJointAttnProcessor2_0 attends to merged keys again.*spare='fill'.*or scope='keys'"


@pytest.mark.parametrize("scope", ["attention", "block"])
def test_ip_adapter_of_sd3_refuses_what_its_second_attention_cannot_be_told(scope):
    subject = ARCHITECTURES["SD3"]
    network = subject.network()
    with attach(network, make_recipe(scope)) as session:
        session.begin_step(0, STEPS)
        load_sd3_ip_adapter(network)
        with pytest.raises(ValueError, match=SECOND):
            session.begin_step(0, STEPS)
    with pytest.raises(ValueError, match=SECOND):
        attach(network, make_recipe(scope))


# ControlNet.


def open_ends(controlnet: nn.Module) -> nn.Module:
    """A fresh ControlNet ends in layers of zeros, and would show nothing."""
    for name, parameter in controlnet.named_parameters():
        if name.startswith("controlnet_"):
            nn.init.normal_(parameter, std=0.3)
    return controlnet.eval()


class Controlled(nn.Module):
    """A network with its ControlNet, as a pipeline calls them."""

    def __init__(self, subject: Architecture) -> None:
        super().__init__()
        self.network = subject.network()
        with seeded(3):
            self.controlnet = open_ends(self.make())


class ControlledFlux(Controlled):
    def make(self) -> nn.Module:
        names = ("in_channels", "num_layers", "num_single_layers", "attention_head_dim", "num_attention_heads")
        names += ("joint_attention_dim", "pooled_projection_dim", "axes_dims_rope")
        return FluxControlNetModel(**{name: self.network.config[name] for name in names})

    def forward(self, **arguments: Any) -> Any:
        double, single = self.controlnet(**arguments, controlnet_cond=noise(2, 64, 4, seed=9))[:2]
        return self.network(**arguments, controlnet_block_samples=double, controlnet_single_block_samples=single)


class ControlledSD3(Controlled):
    def make(self) -> nn.Module:
        names = ("sample_size", "in_channels", "num_layers", "attention_head_dim", "num_attention_heads", "qk_norm")
        names += ("joint_attention_dim", "caption_projection_dim", "pooled_projection_dim", "pos_embed_max_size")
        return SD3ControlNetModel(**{name: self.network.config[name] for name in names})

    def forward(self, return_dict: bool = True, **arguments: Any) -> Any:
        condition = noise(2, 4, 16, 16, seed=9)
        hints = self.controlnet(**arguments, controlnet_cond=condition, return_dict=False)[0]
        return self.network(**arguments, block_controlnet_hidden_states=hints, return_dict=return_dict)


CONTROLLED = {"Flux": ControlledFlux, "SD3": ControlledSD3}


@pytest.mark.parametrize("name", CONTROLLED)
def test_controlnet_of_a_transformer_and_its_own_sites(recipe, name):
    subject = ARCHITECTURES[name]
    pair = CONTROLLED[name](subject)
    unmerged = run(subject, pair)
    runs = []
    own = find_sites(pair.network)
    for sites in (own, own + find_sites(pair.controlnet)):
        with attach(pair.network, recipe, sites=sites) as session:
            runs.append(run(subject, pair, session))
            assert_same(run(subject, pair, session), runs[-1])
            names = {row.site for row in session.summary().rows}
            assert len(names) == len(sites)
    assert differ(runs[0], unmerged) and differ(*runs)
    assert_same(run(subject, pair), unmerged)


@pytest.mark.parametrize("name", CONTROLLED)
def test_controlnet_adds_nothing_between_the_blocks_of_a_segment(name):
    subject = ARCHITECTURES[name]
    pair = CONTROLLED[name](subject)
    with attach(pair.network, make_recipe("block", segment=2)) as session:
        expected = run(subject, pair.network, session)
        with pytest.raises(ValueError, match=r"is a segment.*adds \w*controlnet\w* there: use segment=1"):
            run(subject, pair, session)
        assert_same(run(subject, pair.network, session), expected)
