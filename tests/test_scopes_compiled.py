"""Options of a recipe under torch.compile: no break, two graphs a rung, and one more where nothing merges."""

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from catome_adapters import MergeRecipe, attach
from catome_core import CheckpointSchedule
from models import predict
from scopes import TOTAL, VARIANTS, Variant, differing, make_recipe, run, sample_of, small_unet, spell

COMPILED = [("attention", "output", 1), ("block", "output", 2), ("block", "input", 3)]


@pytest.fixture(autouse=True)
def without_gradients():
    torch.compiler.reset()
    with torch.no_grad():
        yield
    torch.compiler.reset()


@pytest.fixture
def small() -> nn.Module:
    return small_unet()


@pytest.fixture(params=VARIANTS, ids=spell)
def variant(request) -> Variant:
    return request.param


def twelve_steps(session, network: nn.Module) -> list[Tensor]:
    outputs = []
    for step in range(12):
        session.begin_step(step, 12)
        outputs.append(predict(network, sample_of(step)))
    return outputs


def compiled_run(network: nn.Module, recipe: MergeRecipe) -> tuple[list[Tensor], int, int]:
    """Twelve steps compiled, which agree with eager; their outputs, how many rungs they used, and how many graphs."""
    with attach(network, recipe) as session:
        eager = twelve_steps(session, network)
    counter = CompileCounter()
    with attach(network, recipe) as session:
        outputs = twelve_steps(session, torch.compile(network, fullgraph=True, backend=counter))
        rungs = {(row.tokens, row.capacity) for row in session.summary().rows}
    for one, other in zip(outputs, eager, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    return outputs, len(rungs), counter.frame_count


def test_two_graphs_and_that_of_the_first_call_which_allocates(small, variant):
    assert compiled_run(small, make_recipe(variant))[2] <= 3


@pytest.mark.parametrize("variant", COMPILED, ids=spell)
def test_two_graphs_a_rung(small, variant):
    recipe = make_recipe(variant, threshold=0.5, capacity=None, schedule=CheckpointSchedule.every(3, 12))
    _, rungs, graphs = compiled_run(small, recipe)
    assert rungs >= 2, "the data never moved the rung"
    assert graphs <= 2 * rungs + 1


def test_steps_outside_the_part_take_one_graph_more(small):
    outputs, _, graphs = compiled_run(small, make_recipe(("attention", "input", 1), during=(0.25, 0.75)))
    assert graphs <= 4
    plain = [predict(small, sample_of(step)) for step in range(12)]
    assert differing(outputs, plain) == list(range(3, 9))


@pytest.mark.parametrize("variant", COMPILED, ids=spell)
def test_graph_of_steps_outside_the_part_is_that_of_the_unpatched_model(small, variant):
    plain, outside, inside = [], [], []
    with_graph(small, plain)
    with attach(small, make_recipe(variant, during=(0.0, 0.5))) as session:
        for step, graph in ((4, outside), (0, inside)):
            session.begin_step(step, TOTAL)
            with_graph(small, graph)
    assert outside == plain
    assert inside != plain


def with_graph(network: nn.Module, graph: list) -> None:
    """Compile and call the network, and note the operators of its one graph."""
    torch.compiler.reset()

    def backend(module, inputs):
        graph.extend((node.op, str(node.target)) for node in module.graph.nodes if node.op != "placeholder")
        return module

    predict(torch.compile(network, fullgraph=True, backend=backend), sample_of(0))


@pytest.mark.parametrize("variant", COMPILED, ids=spell)
def test_regional_compile_agrees_with_eager(small, variant):
    with attach(small, make_recipe(variant)) as session:
        eager = run(session, small)
    with attach(small, make_recipe(variant)) as session:
        small.compile_repeated_blocks(fullgraph=True, backend="eager")
        for one, other in zip(run(session, small), eager, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
