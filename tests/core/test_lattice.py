"""The lattice of keys: a plan that follows from the grid alone, and moves so that every token has its turn."""

from collections import Counter
from math import prod

import pytest
import torch
import torch._lazy.ts_backend
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._subclasses import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import oracle
from catome_core import Lattice, MovingLattice, TokenGrid, dither, dither_offsets, gather_anchors, lattice_plan
from catome_core.dither import dither_order
from strategies import one_to_three, token_grids

strides = st.tuples(*[st.integers(1, 4)] * 2) | st.tuples(*[one_to_three] * 3)
GRID = TokenGrid((6, 8), stride=(2, 4), prefix=1)
TOKENS = torch.randn(2, GRID.tokens, 4, generator=torch.Generator().manual_seed(0))


def torus_distance(a, b, lengths):
    return sum(min(abs(x - y), n - abs(x - y)) ** 2 for x, y, n in zip(a, b, lengths, strict=True))


@given(token_grids(), st.integers(0, 99))
def test_plan_is_the_oracles(grid, step):
    offsets = dither_offsets(grid, step)
    assert [part.tolist()[0] for part in lattice_plan(grid, offsets)[:3]] == oracle.lattice(grid, offsets.tolist())


@given(token_grids())
def test_still_lattice_is_every_second_row_and_column(grid):
    places = torch.arange(grid.area).reshape(grid.shape)
    strided = places[tuple(slice(None, None, stride) for stride in grid.strides)].flatten() + grid.prefix
    plan = MovingLattice(Lattice(moving=False))(torch.zeros(1, grid.tokens, 1), grid)
    assert plan.anchor[0, grid.prefix :].equal(strided)


@given(token_grids(), st.integers(0, 99))
def test_every_token_of_a_full_cell_has_its_turn_once(grid, phase):
    lattice, tokens, seen = MovingLattice(Lattice(), phase), torch.zeros(1, grid.tokens, 1), Counter()
    for _ in range(prod(grid.strides)):
        seen.update(lattice(tokens, grid).anchor[0, grid.prefix :].tolist())
        lattice.advance()
    sizes = lattice(tokens, grid).size[0]
    for token, cell in enumerate(lattice(tokens, grid).slot[0].tolist()[grid.prefix :], grid.prefix):
        assert seen[token] == 1 if sizes[cell] == prod(grid.strides) else seen[token] >= 1


@given(token_grids(), st.integers(0, 99))
def test_neighboring_cells_have_their_anchors_in_different_places(grid, step):
    offsets = dither_offsets(grid, step).reshape(grid.cells)
    if prod(grid.strides) > 1:
        assert all((offsets.diff(dim=dim) != 0).all() for dim in range(len(grid.cells)))


@given(strides)
def test_each_place_in_dither_order_is_as_far_as_possible_from_those_before(strides):
    places = oracle.positions(TokenGrid(strides))
    order = [places[offset] for offset in dither_order(strides)]
    assert sorted(order) == places
    for turn in range(1, len(order)):
        nearest = [min(torus_distance(place, one, strides) for one in order[:turn]) for place in order[turn:]]
        assert nearest[0] == max(nearest)


@given(token_grids(), st.integers(0, 20))
def test_number_and_tensor_give_the_same_offsets(grid, step):
    assert dither_offsets(grid, torch.tensor([step])).equal(dither_offsets(grid, step))


def test_order_of_a_large_cell_is_worked_out_once(monkeypatch):
    distances, measure, grid = [], dither._distance, TokenGrid((14, 14), stride=7)
    monkeypatch.setattr(dither, "_distance", lambda *places: distances.append(places) or measure(*places))
    for phase in range(2):
        MovingLattice(Lattice(), phase)(torch.zeros(1, grid.tokens, 1), grid)
    assert 0 < len(distances) <= 49 * 48 / 2


def test_reset_begins_again_with_the_phase():
    lattice = MovingLattice(Lattice(), phase=3)
    first = lattice(TOKENS, GRID).anchor
    lattice.advance()
    assert not lattice(TOKENS, GRID).anchor.equal(first)
    lattice.reset()
    assert lattice(TOKENS, GRID).anchor.equal(first)
    assert (
        first[0, 1:].tolist()
        == (1 + lattice_plan(TokenGrid((6, 8), (2, 4)), dither_offsets(GRID, 3)).anchor[0]).tolist()
    )


class Layer(nn.Module):
    """Attention over a lattice of its tokens."""

    def __init__(self, phase: int) -> None:
        super().__init__()
        self.lattice = MovingLattice(Lattice(), phase)

    def forward(self, tokens: Tensor) -> Tensor:
        keys = gather_anchors(tokens, self.lattice(tokens, GRID))
        return tokens + scaled_dot_product_attention(tokens[:, None], keys[:, None], keys[:, None])[:, 0]


class RefuseReads(TorchDispatchMode):
    """Raises where a number is read from the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("fresh_compiler", "without_gradients")
def test_all_steps_of_all_layers_are_one_graph_and_read_nothing_from_the_device():
    network, counter = nn.Sequential(*[Layer(phase) for phase in range(3)]), CompileCounter()
    compiled = torch.compile(network, fullgraph=True, backend=counter)
    for _ in range(9):
        with RefuseReads():
            eager = network(TOKENS)
        torch.testing.assert_close(compiled(TOKENS), eager)
        for layer in network:
            layer.lattice.advance()
    assert counter.frame_count == 1


@pytest.mark.usefixtures("fresh_compiler", "without_gradients")
def test_inductor_agrees_with_eager():
    layer = Layer(0)
    compiled = torch.compile(layer, fullgraph=True)
    for _ in range(3):
        torch.testing.assert_close(compiled(TOKENS), layer(TOKENS))
        layer.lattice.advance()


def test_shape_inference_and_inference_mode_leave_no_trace():
    grid, other = TokenGrid((4, 6), prefix=2), TokenGrid((4, 10), prefix=2)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = MovingLattice(Lattice())(mode.from_tensor(torch.zeros(1, grid.tokens, 1)), grid)
    assert fake.anchor.shape == (1, grid.prefix + grid.destinations)
    with torch.inference_mode():
        MovingLattice(Lattice())(torch.zeros(1, other.tokens, 1), other)
    for one in (grid, other):
        tokens = torch.randn(1, one.tokens, 3, requires_grad=True)
        gather_anchors(tokens, MovingLattice(Lattice())(tokens, one)).sum().backward()
        assert tokens.grad is not None


def move_by_to_empty(lattice):
    return lattice.to("meta").to_empty(device="cpu")


@pytest.mark.parametrize("move", [move_by_to_empty, lambda lattice: lattice.to("meta"), lambda lattice: lattice.half()])
@pytest.mark.usefixtures("fresh_compiler")
def test_step_survives_a_move_of_the_module(move):
    """Also one to where there are no values, as offloaded weights are."""
    stayed, moved = MovingLattice(Lattice(), phase=1), MovingLattice(Lattice(), phase=1)
    for lattice in (stayed, moved):
        lattice.advance()
    moved = move(moved)
    for forward in (moved, torch.compile(moved, fullgraph=True, backend="eager")):
        assert forward(TOKENS, GRID).anchor.equal(stayed(TOKENS, GRID).anchor)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("compiled", [False, True])
def test_step_of_offloaded_weights_has_a_value(compiled):
    lattice, expected = MovingLattice(Lattice(), device="meta"), MovingLattice(Lattice())
    forward = torch.compile(lattice, fullgraph=True, backend="eager") if compiled else lattice
    for _ in range(3):
        assert forward(TOKENS, GRID).anchor.equal(expected(TOKENS, GRID).anchor)
        for one in (lattice, expected):
            one.advance()


def test_step_that_inference_mode_moved_to_another_device_moves_on():
    torch._lazy.ts_backend.init()
    lattice, expected = MovingLattice(Lattice()), MovingLattice(Lattice())
    with torch.inference_mode():
        lattice(TOKENS.to("lazy"), GRID)
    assert lattice.step.device.type == "lazy"
    for one in (lattice, expected):
        one.advance()
    assert lattice(TOKENS, GRID).anchor.equal(expected(TOKENS, GRID).anchor)


def test_call_that_gradient_checkpointing_repeats_has_the_anchors_of_its_step():
    layer, plain, repeated = Layer(0), TOKENS.clone().requires_grad_(), TOKENS.clone().requires_grad_()
    layer(plain).square().sum().backward()
    output = checkpoint(layer, repeated, use_reentrant=False)
    layer.lattice.advance()
    output.square().sum().backward()
    torch.testing.assert_close(repeated.grad, plain.grad, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "value", "remedy"),
    [
        (lambda: Lattice(near=-1), "near is -1", "from 0, 'auto', or None"),
        (lambda: Lattice(near=True), "near is True", "from 0, 'auto', or None"),
        (lambda: Lattice(near="auto").field(GRID), "near is 'auto'", "only attach can decide"),
        (lambda: Lattice(moving="no"), "moving is 'no'", "True or False"),
        (lambda: MovingLattice(Lattice(), phase=0.5), "phase is 0.5", "number of a step"),
        (lambda: MovingLattice(Lattice())(TOKENS[:, 1:], GRID), r"\(2, 48, 4\)", "lays out 49"),
    ],
)
def test_error_names_the_value_and_the_remedy(make, value, remedy):
    with pytest.raises((TypeError, ValueError), match=value) as error:
        make()
    error.match(remedy)
