"""What changes a transformer: the same whether it comes before or after the session."""

from itertools import cycle

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module, remove_hook_from_module

from catome_adapters import attach
from changes import add_lora, fuse_projections, quantize
from running import SCOPES, TOTAL, all_differ, assert_same, call, lattice_recipe, make_recipe, run, run_merged
from tiers import tiered
from zoo.packed_images import FLUX
from zoo.transformers import ARCHITECTURES


def offload(network) -> None:
    """What `enable_sequential_cpu_offload` does: weights are loaded at each call, and inputs moved there."""
    cpu_offload(network, execution_device="cpu", offload_buffers=False)


def align_devices(network) -> None:
    """What `enable_model_cpu_offload` does, to every module: accelerate replaces its forward."""
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
    quantize: ("PixArt", "Flux", "Wan"),
    offload: ("PixArt", "Flux", "Wan"),
    align_devices: ("PixArt", "Flux", "Wan"),
    offload_groups: ("PixArt", "Flux", "Wan"),
    cast_layerwise: ("PixArt", "Flux", "Wan"),
}
CASES = [(change, name) for change in CHANGES for name in CHANGES[change]]
# Every second change of a network, each in a scope, of the next one another.
IN_TURN = [(*case, scope) for case, scope in zip(CASES[::2], cycle(SCOPES))]


@pytest.mark.parametrize(
    ("change", "name", "scope"), tiered([(*case, scope) for case in CASES for scope in SCOPES], IN_TURN)
)
def test_change_before_and_after_attach_is_the_same(recipe, change, name):
    subject = ARCHITECTURES[name]
    before, after = subject.network(), subject.network()
    change(before)
    expected = run_merged(subject, before, recipe)
    with attach(after, recipe) as session:
        plain = run(subject, after, session)
        change(after)
        changed = run(subject, after, session)
        session.begin_step(0, TOTAL)
        assert session.summary().merged_fraction > 0.2
    assert_same(changed, expected)
    assert all_differ(changed, plain) == (change in (add_lora, quantize, cast_layerwise))
    # Detached, nothing of the session is left: it is the changed network.
    unmerged = run(subject, after)
    assert_same(unmerged, run(subject, before))
    assert all_differ(unmerged, expected)


@pytest.mark.parametrize("change", [offload, align_devices, offload_groups])
def test_lattice_of_offloaded_weights_moves_on_as_ever(change):
    subject, recipe = ARCHITECTURES["PixArt"], lattice_recipe()
    expected, changed = run_merged(subject, subject.network(), recipe), subject.network()
    change(changed)
    assert_same(run_merged(subject, changed, recipe), expected)


@pytest.mark.parametrize("name", tiered(FUSING, FUSING[::3]))
def test_fused_projections_give_the_same(recipe, name):
    subject = ARCHITECTURES[name]
    network = subject.network()
    expected = run_merged(subject, network, recipe)
    fuse_projections(network)
    assert_same(run_merged(subject, network, recipe), expected, tolerance=1e-4)


def test_hooks_of_accelerate_can_be_taken_off_under_a_session(recipe):
    subject = ARCHITECTURES["Flux"]
    network = subject.network()
    expected = run_merged(subject, network, recipe)
    for module in list(network.modules()):
        add_hook_to_module(module, ModelHook())
    with attach(network, recipe) as session:
        remove_hook_from_module(network, recurse=True)
        assert_same(run(subject, network, session), expected)


def test_modulation_as_wide_as_the_grid_is_long_is_left_alone():
    """A single row of modulation serves all tokens, also where it has as many channels as there are tokens."""
    network = FLUX.network()
    with attach(network, make_recipe("block")) as session:
        assert call(FLUX, network, session, size=(4, network.inner_dim // 4)).isfinite().all()
