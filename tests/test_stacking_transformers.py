"""Beside a session on a transformer: adapters, fused projections, offloading, quantisation, training."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module, remove_hook_from_module
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from architectures import ARCHITECTURES
from catome_adapters import MergeRecipe, attach
from catome_core import CheckpointSchedule
from models import noise, seeded
from scopes import SCOPES
from stacks import STEPS, assert_same, call, differ, make_recipe, merged, run


@pytest.fixture(params=SCOPES)
def recipe(request) -> MergeRecipe:
    return make_recipe(request.param)


# What changes the network: the same whether it comes before or after the session.


def add_lora(network) -> None:
    with seeded(1):
        inject_adapter_in_model(
            LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v"]), network
        )


def skip_refused(name: str, change: Callable[[nn.Module], None], recipe: MergeRecipe) -> None:
    if name == "PixArt" and change is fuse_projections and recipe.scope == "keys":
        pytest.skip("refused: see test_keys_refuse_fused_projections_and_the_remedy_works")


def fuse_projections(network) -> None:
    network.fuse_qkv_projections()


def quantise(network) -> None:
    quantize_(network, Int8WeightOnlyConfig())


def offload(network) -> None:
    """What `enable_sequential_cpu_offload` does: weights arrive with the call, and inputs are moved to their device."""
    cpu_offload(network, execution_device="cpu", offload_buffers=False)


def align_devices(network) -> None:
    """What `enable_model_cpu_offload` does, to every module: accelerate puts a forward of its own in its place."""
    for module in list(network.modules()):
        add_hook_to_module(module, AlignDevicesHook(execution_device="cpu", io_same_device=True))


def offload_groups(network) -> None:
    network.enable_group_offload(
        onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), offload_type="leaf_level"
    )


def cast_layerwise(network) -> None:
    network.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)


FUSING = ("PixArt", "Flux", "Qwen-Image", "Wan", "LTX", "CogVideoX", "HunyuanVideo")
CHANGES = {
    add_lora: tuple(ARCHITECTURES),
    fuse_projections: FUSING,
    quantise: ("PixArt", "Flux", "Wan"),
    offload: ("PixArt", "Flux", "Wan"),
    align_devices: ("PixArt", "Flux", "Wan"),
    offload_groups: ("PixArt", "Flux", "Wan"),
    cast_layerwise: ("PixArt", "Flux", "Wan"),
}
CASES = [pytest.param(change, name, id=f"{change.__name__}-{name}") for change in CHANGES for name in CHANGES[change]]


@pytest.mark.parametrize(("change", "name"), CASES)
def test_change_before_and_after_attach_is_the_same(recipe, change, name):
    skip_refused(name, change, recipe)
    subject = ARCHITECTURES[name]
    before, after = subject.network(), subject.network()
    change(before)
    expected = merged(subject, before, recipe)
    with attach(after, recipe) as session:
        plain = run(subject, after, session)
        change(after)
        changed = run(subject, after, session)
        session.begin_step(0, STEPS)
        assert session.summary().merged_fraction > 0.2
    assert_same(changed, expected)
    assert differ(changed, plain) == (change in (add_lora, quantise, cast_layerwise))
    # Detached, nothing of the session is left: it is the changed network.
    unmerged = run(subject, after)
    assert_same(unmerged, run(subject, before))
    assert differ(unmerged, expected)


@pytest.mark.parametrize("name", FUSING)
def test_fused_projections_give_the_same(recipe, name):
    skip_refused(name, fuse_projections, recipe)
    subject = ARCHITECTURES[name]
    network = subject.network()
    expected = merged(subject, network, recipe)
    fuse_projections(network)
    assert_same(merged(subject, network, recipe), expected, tolerance=1e-4)


def test_hooks_of_accelerate_can_be_taken_off_under_a_session(recipe):
    subject = ARCHITECTURES["Flux"]
    network = subject.network()
    expected = merged(subject, network, recipe)
    for module in list(network.modules()):
        add_hook_to_module(module, ModelHook())
    with attach(network, recipe) as session:
        remove_hook_from_module(network, recurse=True)
        assert_same(run(subject, network, session), expected)


# Training.


def gradients(subject, network, session, *, checkpointing: bool) -> list[Tensor]:
    network.train()
    network.zero_grad()
    network.enable_gradient_checkpointing() if checkpointing else network.disable_gradient_checkpointing()
    session.reset()
    session.begin_step(0, STEPS)
    call(subject, network).square().sum().backward()
    return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("name", ["PixArt", "SD3", "Flux", "Wan", "HunyuanVideo"])
def test_gradients_pass_and_survive_gradient_checkpointing(recipe, name):
    subject = ARCHITECTURES[name]
    network = subject.network()
    with attach(network, recipe) as session:
        stored = gradients(subject, network, session, checkpointing=False)
        assert all(gradient.isfinite().all() for gradient in stored)
        assert any(gradient.any() for gradient in stored)
        assert_same(gradients(subject, network, session, checkpointing=True), stored, tolerance=1e-4)


# Rotary embeddings and root-mean-square norms round to single precision.
EXACT = {"PixArt": {}, "SD3": {"qk_norm": None}}


@pytest.mark.parametrize("name", EXACT)
def test_gradient_is_the_slope_of_the_merged_network(recipe, name):
    """Along a random direction, while the plan of the first step is kept."""
    subject = ARCHITECTURES[name]
    network, size = subject.network(**EXACT[name]).double(), subject.sizes[0]
    sample = noise(*subject.sample(1, size)).double().requires_grad_()
    inputs = {name: _double(value) for name, value in subject.inputs(sample, size).items()}
    direction = noise(*sample.shape, seed=1).double()

    def loss(step: int, distance: float) -> Tensor:
        session.begin_step(step, STEPS)
        moved = sample + distance * direction
        return network(**inputs | {"hidden_states": moved}, return_dict=False)[0].square().sum()

    with attach(network, replace(recipe, schedule=CheckpointSchedule((0,), of=STEPS))) as session:
        slope = torch.autograd.grad(loss(0, 0.0), sample)[0].mul(direction).sum()
        with torch.no_grad():
            expected = (loss(1, 1e-4) - loss(2, -1e-4)) / 2e-4
    torch.testing.assert_close(slope, expected, rtol=1e-5, atol=0.0)


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


# A single row of modulation serves all tokens, also where it has as many channels as there are tokens.


def test_modulation_as_wide_as_the_grid_is_long_follows_nothing():
    subject = ARCHITECTURES["Flux"]
    network, size = subject.network(), (4, network_width() // 4)
    with attach(network, make_recipe("block")) as session, torch.no_grad():
        session.begin_step(0, STEPS)
        assert call(subject, network, size=size).isfinite().all()


def network_width() -> int:
    return ARCHITECTURES["Flux"].network().inner_dim
