"""What `catome plan` says of memory and graphs is what a session holds and what the compiler counts."""

from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from catome_adapters import RECIPES, MergeRecipe, attach, find_sites
from catome_bench.planning.costs import describe_graphs, held_bytes
from catome_core import AdaptiveMerge
from zoo.transformers import ARCHITECTURES

pytestmark = pytest.mark.thorough

KIND = ARCHITECTURES["DiT"]
HALF = MergeRecipe(AdaptiveMerge(capacity=0.25, spare="fill"), levels="all")
SEGMENTS = replace(HALF, scope="block", segment=2)


def always(name: str) -> MergeRecipe:
    return replace(RECIPES[name], levels="all")


@pytest.mark.parametrize("recipe", [always("balanced"), always("adaptive"), always("tomesd"), SEGMENTS])
def test_the_memory_that_is_forecast_is_held_by_a_session(recipe):
    network = KIND.network()
    with attach(network, recipe) as session:
        session.begin_step(0, 50)
        KIND.call(network)
        held = session.summary().memory
    shape = KIND.grid(KIND.sizes[0])
    assert held_bytes([replace(site, shape=shape) for site in find_sites(network)], recipe) == held


def count_graphs(recipe: MergeRecipe) -> int:
    """Of the first four steps of fifty."""
    network, counter = KIND.shallow(), CompileCounter()
    with torch.no_grad(), attach(network, recipe) as session:
        session.begin_step(2, 50)
        KIND.call(network)  # allocates
        compiled = torch.compile(network, fullgraph=True, backend=counter)
        for step in range(4):
            session.begin_step(step, 50)
            KIND.call(compiled)
    return counter.frame_count


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(("recipe", "graphs"), [(always("tomesd"), 1), (HALF, 2)])
def test_the_graphs_that_are_forecast_are_compiled(recipe, graphs):
    assert count_graphs(recipe) == graphs
    assert describe_graphs(recipe, denoises=True).startswith({1: "one graph", 2: "two graphs: "}[graphs])


@pytest.mark.usefixtures("fresh_compiler")
def test_steps_that_do_not_merge_take_one_graph_more():
    always_merges = replace(always("todo"), during=(0.0, 1.0))
    later = replace(always_merges, during=(0.04, 1.0))
    assert (count_graphs(always_merges), count_graphs(later)) == (1, 2)
    merging, unmerged = "one graph for all steps that merge", "one more for the steps that do not merge"
    assert describe_graphs(later, denoises=True) == f"{merging}, and {unmerged}"


def test_a_ladder_has_two_graphs_for_every_rung_and_lattices_and_vits_have_one():
    assert describe_graphs(RECIPES["todo"], denoises=True) == "one graph for all steps"
    assert describe_graphs(RECIPES["adaptive"], denoises=True).startswith("two graphs for every rung of the ladder")
    assert describe_graphs(RECIPES["adaptive"], denoises=False) == "one graph, which recomputes the pairs in every call"


@pytest.mark.usefixtures("fresh_compiler")
def test_each_kind_of_cells_takes_a_graph():
    recipe = replace(always("todo"), later=((0.04, (2, 4)),))
    assert count_graphs(recipe) == 2
    assert describe_graphs(recipe, denoises=True) == "two graphs for all steps, one for each kind of cells"
