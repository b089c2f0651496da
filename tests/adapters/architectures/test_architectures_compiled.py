"""Every architecture compiled as a whole: one graph to recompute and one to reuse."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from catome_adapters import attach
from running import ONCE, assert_close, call, make_recipe
from tiers import tiered
from zoo.transformers import ARCHITECTURES, COMPILED_BY_BLOCKS

pytestmark = pytest.mark.usefixtures("fresh_compiler", "without_gradients")

CASES = dict.fromkeys(ARCHITECTURES, "attention") | dict.fromkeys(COMPILED_BY_BLOCKS, "block")


@pytest.mark.parametrize(("name", "scope"), tiered(CASES.items(), [("Flux", "block")]))
def test_whole_network_compiles_to_two_graphs(name, scope):
    """Recompute and reuse on fresh data agree with eager."""
    subject, counter = ARCHITECTURES[name], CompileCounter()
    network = subject.shallow()
    with attach(network, make_recipe(scope, schedule=ONCE)) as session:
        eager = [call(subject, network, session, step, seed=step) for step in range(3)]
        compiled = torch.compile(network, fullgraph=True, backend=counter)
        assert_close([call(subject, compiled, session, step, seed=step) for step in range(3)], eager)
    assert counter.frame_count == subject.graphs
