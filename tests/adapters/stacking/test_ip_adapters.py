"""IP-Adapters beside a session on a transformer."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import JointAttnProcessor2_0, SD3IPAdapterJointAttnProcessor2_0
from torch import Tensor, nn

from catome_adapters import attach
from running import SCOPES, TOTAL, all_differ, assert_same, make_recipe, maskless_recipe, run
from zoo.architecture import Architecture
from zoo.noise import noise, seeded
from zoo.transformers import ARCHITECTURES


def run_with_image(subject: Architecture, network: nn.Module, session: Any, image: Callable[[], dict]) -> list[Tensor]:
    """The network takes the embeddings out of the dictionary: every step has one of its own."""
    return [run(subject, network, session, steps=[step], **image())[0] for step in range(TOTAL)]


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
    return {"joint_attention_kwargs": {"ip_adapter_image_embeds": [noise(2, 1, 6)]}}


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
    assert all_differ(expected, without)
    assert all_differ(expected, run_with_image(subject, after, None, flux_image))


def load_sd3_ip_adapter(network) -> None:
    with seeded(2):
        for block in network.transformer_blocks:
            width = network.inner_dim
            block.attn.processor = SD3IPAdapterJointAttnProcessor2_0(width, 8, 8, 8)
            if block.attn2 is not None:
                block.attn2.processor = JointAttnProcessor2_0()


def sd3_image() -> dict[str, Any]:
    return {"joint_attention_kwargs": {"ip_hidden_states": noise(2, 4, 8), "temb": noise(2, 8, seed=1)}}


@pytest.mark.parametrize(
    "recipe", [maskless_recipe("attention"), maskless_recipe("block"), make_recipe("keys")], ids=SCOPES
)
def test_ip_adapter_of_sd3(recipe):
    subject = ARCHITECTURES["SD3"]
    network = subject.network()
    load_sd3_ip_adapter(network)
    unmerged = run_with_image(subject, network, None, sd3_image)
    with attach(network, replace(recipe, policy=replace(recipe.policy, threshold=1.0, capacity=None))) as session:
        assert_same(run_with_image(subject, network, session, sd3_image), unmerged, tolerance=1e-5)
    with attach(network, recipe) as session:
        with_image = run_with_image(subject, network, session, sd3_image)
        assert all_differ(with_image, run(subject, network, session)) and all_differ(with_image, unmerged)


SECOND = "SD3IPAdapterJointAttnProcessor2_0 attends to merged keys again.*spare='fill'.*or scope='keys'"


@pytest.mark.parametrize("scope", ["attention", "block"])
def test_ip_adapter_of_sd3_refuses_a_mask_that_its_second_attention_cannot_take(scope):
    subject = ARCHITECTURES["SD3"]
    network = subject.network()
    with attach(network, make_recipe(scope)) as session:
        session.begin_step(0, TOTAL)
        load_sd3_ip_adapter(network)
        with pytest.raises(ValueError, match=SECOND):
            session.begin_step(0, TOTAL)
    with pytest.raises(ValueError, match=SECOND):
        attach(network, make_recipe(scope))
