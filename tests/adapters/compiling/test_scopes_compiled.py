"""Options of a recipe under torch.compile: no break, two graphs a rung, and one more where nothing merges."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from catome_adapters import MergeRecipe, attach
from catome_core import CheckpointSchedule
from running import TOTAL, assert_close, differing_steps, run, run_merged, spell, unet_recipe, vary
from zoo.unets import SMALL

TWO_KINDS = [vary("attention", "output", 1), vary("block", "input", 3)]
OTHERS = [vary("keys", "input", 1), vary("block", "output", 2)]

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("fresh_compiler", "without_gradients")]


def compiled_run(network: nn.Module, recipe: MergeRecipe) -> tuple[list[Tensor], int, int]:
    """Twelve steps compiled, which agree with eager; their outputs, how many rungs they used, and how many graphs."""
    eager, counter = run_merged(SMALL, network, recipe, total=12), CompileCounter()
    with attach(network, recipe) as session:
        outputs = run(SMALL, torch.compile(network, fullgraph=True, backend=counter), session, total=12)
        rungs = {(row.tokens, row.capacity) for row in session.summary().rows}
    assert_close(outputs, eager)
    return outputs, len(rungs), counter.frame_count


@pytest.mark.parametrize("variant", OTHERS, ids=spell)
def test_two_graphs_and_that_of_the_first_call_which_allocates(small, variant):
    assert compiled_run(small, unet_recipe(**variant))[2] <= 3


@pytest.mark.parametrize("variant", TWO_KINDS, ids=spell)
def test_two_graphs_a_rung(small, variant):
    recipe = unet_recipe(**variant, threshold=0.5, capacity=None, schedule=CheckpointSchedule.every(3, 12))
    _, rungs, graphs = compiled_run(small, recipe)
    assert rungs >= 2, "the data never moved the rung"
    assert graphs <= 2 * rungs + 1


def test_steps_outside_the_part_take_one_graph_more(small):
    outputs, _, graphs = compiled_run(small, unet_recipe(during=(0.25, 0.75)))
    assert graphs <= 4
    assert differing_steps(outputs, run(SMALL, small, total=12)) == list(range(3, 9))


@pytest.mark.parametrize("variant", TWO_KINDS, ids=spell)
def test_graph_of_steps_outside_the_part_is_that_of_the_unpatched_model(small, variant):
    plain, outside, inside = [], [], []
    with_graph(small, plain)
    with attach(small, unet_recipe(**variant, during=(0.0, 0.5))) as session:
        for step, graph in ((4, outside), (0, inside)):
            session.begin_step(step, TOTAL)
            with_graph(small, graph)
    assert outside == plain
    assert inside != plain


def with_graph(network: nn.Module, graph: list[Any]) -> None:
    """Compile and call the network, and note the operators of its one graph."""
    torch.compiler.reset()

    def backend(module, inputs):
        graph.extend((node.op, str(node.target)) for node in module.graph.nodes if node.op != "placeholder")
        return module

    SMALL.call(torch.compile(network, fullgraph=True, backend=backend))


@pytest.mark.parametrize("variant", TWO_KINDS + OTHERS, ids=spell)
def test_regional_compile_agrees_with_eager(small, variant):
    eager = run_merged(SMALL, small, unet_recipe(**variant))
    with attach(small, unet_recipe(**variant)) as session:
        small.compile_repeated_blocks(fullgraph=True, backend="eager")
        assert_close(run(SMALL, small, session), eager)
