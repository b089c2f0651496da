"""What a lattice of keys asks of kernels and the compiler: no mask, one graph for all steps, nothing read back."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from catome_adapters import attach, compile_blocks
from lattice_by_hand import CASES, WIDE
from probes import Operations
from running import TOTAL, assert_close, assert_same, lattice_recipe, run
from tiers import tiered
from zoo.transformers import ARCHITECTURES
from zoo.unets import SMALL

pytestmark = pytest.mark.usefixtures("fresh_compiler", "without_gradients")

RECIPE = lattice_recipe()
NEAR = lattice_recipe(near=1)


class RefuseMasks(TorchFunctionMode):
    """A kernel that takes no mask."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert func is not scaled_dot_product_attention or (kwargs.get("attn_mask") is None and len(args) < 4)
        return func(*args, **kwargs)


@pytest.mark.parametrize("name", ["SD", "Wan"])
def test_keys_that_count_alike_need_no_mask(name):
    case = CASES[name]
    network = case.model.network()
    with attach(network, RECIPE) as session, RefuseMasks():
        run(case.model, network, session)


@pytest.mark.parametrize(("case", "recipe"), [(CASES["Flux"], RECIPE), (WIDE["Flux"], NEAR)], ids=["text", "near"])
def test_sizes_travel_in_channels_where_the_kernel_takes_no_mask(case, recipe):
    network = case.model.network()
    with attach(network, recipe) as session:
        expected = run(case.model, network, session, size=case.size)
        network.set_attention_backend("_native_flash")
        try:
            with RefuseMasks():
                assert_same(run(case.model, network, session, size=case.size), expected, tolerance=1e-4)
        finally:
            network.set_attention_backend("native")


@pytest.mark.parametrize("name", tiered(["UNet", "Flux", "Wan"], ["UNet"]))
def test_all_steps_are_one_graph(name):
    kind = SMALL if name == "UNet" else ARCHITECTURES[name]
    network, counter = kind.network() if name == "UNet" else kind.shallow(), CompileCounter()
    with attach(network, RECIPE) as session:
        eager = run(kind, network, session)
        compiled = run(kind, torch.compile(network, fullgraph=True, backend=counter), session)
    assert_close(compiled, eager)
    assert counter.frame_count == (1 if name != "Flux" else kind.graphs - 1)


@pytest.mark.thorough
def test_near_field_is_part_of_the_graph():
    case, counter = WIDE["Flux"], CompileCounter()
    network = case.model.shallow()
    with attach(network, NEAR) as session:
        eager = run(case.model, network, session, size=case.size)
        compiled = torch.compile(network, fullgraph=True, backend=counter)
        assert_close(run(case.model, compiled, session, size=case.size), eager)
    assert counter.frame_count == case.model.graphs - 1


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["PixArt", "Wan"])
def test_equal_blocks_share_their_graph(name):
    """Each has a phase of its own, and none of them graphs of its own: the plan has one beside that of the block."""
    kind, counter, plain = ARCHITECTURES[name], CompileCounter(), CompileCounter()
    network, other = kind.network(num_layers=3), kind.network(num_layers=3)
    with attach(network, RECIPE) as session:
        eager = run(kind, network, session)
        compile_blocks(network, fullgraph=True, backend=counter)
        assert_close(run(kind, network, session), eager)
    compile_blocks(other, fullgraph=True, backend=plain)
    kind.call(other)
    assert counter.frame_count == 2 * plain.frame_count


@pytest.mark.parametrize("name", ["SD", "Flux"])
def test_nothing_is_read_from_the_device_and_a_step_moves_each_lattice_by_one_operation(name):
    case = CASES[name]
    network = case.model.network()
    with attach(network, RECIPE) as session:
        for step in range(2):
            session.begin_step(step, TOTAL)
            case.model.call(network)
        between = Operations.of(lambda: session.begin_step(2, TOTAL))
        within = Operations.of(lambda: case.model.call(network))
    assert between == ["aten.fill_.Scalar"] * len(session.sites)
    assert "aten._local_scalar_dense.default" not in within
