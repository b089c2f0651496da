"""Cells that change in the course of a run: every step does what a recipe with only its cells would do."""

from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from catome_adapters import attach, compile_blocks
from catome_adapters.prediction.worth import Worth
from catome_core import Lattice
from lattice_by_hand import CASES, WIDE
from running import TOTAL, assert_close, assert_same, differing_steps, lattice_recipe, run, run_merged
from tiers import tiered
from zoo.own_models import hugging_face_vit
from zoo.transformers import ARCHITECTURES
from zoo.unets import SMALL

pytestmark = pytest.mark.usefixtures("fresh_compiler", "without_gradients")

STILL, MOVING = (lattice_recipe(moving=moving) for moving in (False, True))
LATER = ((1 / 3, (2, 4)), (2 / 3, 4))
CELLS = [2, 2, (2, 4), (2, 4), 4, 4]


@pytest.mark.parametrize("recipe", [STILL, MOVING], ids=["still", "moving"])
@pytest.mark.parametrize("name", tiered(["SD", "Flux, partial cells", "Wan"], ["Flux, partial cells"]))
def test_every_step_has_the_cells_of_its_part(name, recipe):
    case = CASES[name]
    network = case.model.network()
    alone = {cells: run_merged(case.model, network, replace(recipe, stride=cells), size=case.size) for cells in CELLS}
    with attach(network, replace(recipe, later=LATER)) as session:
        for _ in range(2):
            seen = run(case.model, network, session, size=case.size)
            assert_same(seen, [alone[cells][step] for step, cells in enumerate(CELLS)])
        session.reset()
        session.begin_step(0, TOTAL)
        assert_same(case.model.call(network, size=case.size, seed=0), seen[0])


def test_a_near_field_has_the_cells_of_its_part():
    case = WIDE["PixArt"]
    network = case.model.network()
    near = replace(MOVING, policy=Lattice(near=0))
    alone = [run_merged(case.model, network, replace(near, stride=cells), size=case.size) for cells in (2, 4)]
    seen = run_merged(case.model, network, replace(near, later=((0.5, 4),)), size=case.size)
    assert_same(seen, alone[0][:3] + alone[1][3:])


def test_cells_of_one_token_leave_a_part_of_the_run_alone():
    network = SMALL.network()
    plain = run(SMALL, network)
    assert differing_steps(run_merged(SMALL, network, replace(MOVING, stride=1, later=((0.5, 2),))), plain) == [3, 4, 5]
    assert differing_steps(run_merged(SMALL, network, replace(MOVING, later=((0.5, 1),))), plain) == [0, 1, 2]


def test_the_parts_are_those_of_the_steps_that_merge():
    network = SMALL.network()
    part = replace(MOVING, during=(1 / 3, 1.0))
    alone = [run_merged(SMALL, network, replace(part, stride=cells)) for cells in (2, 4)]
    seen = run_merged(SMALL, network, replace(part, later=((0.5, 4),)))
    assert differing_steps(seen, run(SMALL, network)) == [2, 3, 4, 5]
    assert_same(seen, alone[0][:4] + alone[1][4:])


@pytest.mark.filterwarnings("ignore:the denoising step is unknown")
def test_without_steps_the_first_cells_hold():
    network = SMALL.network()
    with attach(network, MOVING):
        expected = SMALL.call(network)
    with attach(network, replace(MOVING, later=LATER)) as session:
        assert_same(SMALL.call(network), expected)
        run(SMALL, network, session)
        session.reset()
        assert_same(SMALL.call(network), expected)


@pytest.mark.thorough
def test_each_kind_of_cells_is_one_graph():
    kind, counter = ARCHITECTURES["DiT"], CompileCounter()
    network = kind.shallow()
    with attach(network, replace(MOVING, later=LATER)) as session:
        eager = run(kind, network, session)
        compiled = torch.compile(network, fullgraph=True, backend=counter)
        for _ in range(2):
            assert_close(run(kind, compiled, session), eager)
    assert counter.frame_count == 3


@pytest.mark.thorough
def test_equal_blocks_share_the_graphs_of_each_part():
    kind, counters = ARCHITECTURES["DiT"], (CompileCounter(), CompileCounter())
    for counter, recipe in zip(counters, (MOVING, replace(MOVING, later=((0.5, 4),))), strict=True):
        network = kind.network(num_layers=2)
        with attach(network, recipe) as session:
            eager = run(kind, network, session)
            compile_blocks(network, fullgraph=True, backend=counter)
            assert_close(run(kind, network, session), eager)
    assert counters[1].frame_count == 2 * counters[0].frame_count


@pytest.mark.filterwarnings("ignore:merging is predicted to")
def test_what_is_too_small_to_gain_at_first_may_gain_with_larger_cells(monkeypatch):
    monkeypatch.setattr(Worth, "at_size", lambda worth, weights, key, total: key.grid.strides[0] > 2)
    network = SMALL.network()
    plain = run(SMALL, network)
    recipe = replace(MOVING, levels="auto", later=((0.5, 4),))
    with attach(network, recipe) as session:
        for _ in range(2):
            assert differing_steps(run(SMALL, network, session), plain) == [3, 4, 5]


def test_a_model_without_steps_has_no_later_part():
    with pytest.raises(ValueError, match="later has other cells, which merge after the first step"):
        attach(hugging_face_vit(), replace(STILL, later=((0.5, 4),)))


def test_a_later_stride_of_too_many_dimensions_is_refused():
    case = CASES["SD"]
    network = case.model.network()
    with (
        attach(network, replace(MOVING, later=((0.5, (1, 2, 2)),))) as session,
        pytest.raises(ValueError, match=r"stride is \(1, 2, 2\), and the grid is"),
    ):
        run(case.model, network, session, size=case.size)
