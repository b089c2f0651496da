"""A whole vision transformer compiled: one graph, and one for the first call, which allocates."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from catome_adapters import RECIPES, MergeRecipe, attach
from running import SCOPES, assert_close, vit_recipe
from tiers import tiered
from zoo.vits import VITS, images

pytestmark = pytest.mark.usefixtures("fresh_compiler", "without_gradients")

# With one scope, test_matrix compiles them all.


def count_graphs(name: str, recipe: MergeRecipe, depth: int = 1) -> int:
    """Of three calls of a network of so many blocks, which agree with eager."""
    network, counter = VITS[name].network(depth=depth), CompileCounter()
    with attach(network, recipe):
        expected = [network(images(seed=seed)) for seed in range(3)]
    with attach(network, recipe):
        compiled = torch.compile(network, backend=counter, fullgraph=True)
        assert_close([compiled(images(seed=seed)) for seed in range(3)], expected)
    return counter.frame_count


@pytest.mark.parametrize("scope", tiered(SCOPES, ["keys"]))
def test_whole_model_compiles_to_one_graph_and_one_for_the_first_call(scope):
    assert count_graphs("ViT", vit_recipe(scope)) <= 2


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["ViT", "RoPE mixed"])
def test_progressive_merging_compiles_to_one_graph_and_one_for_the_first_call(name):
    assert count_graphs(name, RECIPES["tome"], depth=2) <= 2
