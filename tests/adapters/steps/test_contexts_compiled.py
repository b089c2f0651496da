"""Contexts in a compiled network."""

from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from catome_adapters import MergeRecipe, attach
from running import TOTAL, assert_close
from two_calls import by_fields, by_order, counting_recipe, one_sample, two_calls
from zoo.architecture import Architecture

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("fresh_compiler")]


def whole(network: nn.Module, counter: CompileCounter) -> nn.Module:
    return torch.compile(network, fullgraph=True, backend=counter)


def blocks(network: nn.Module, counter: CompileCounter) -> nn.Module:
    network.compile_repeated_blocks(fullgraph=True, backend=counter)
    return network


def graphs_of_one_call(subject: Architecture, compile_network: Any, recipe: MergeRecipe) -> int:
    network, counter = subject.network(num_layers=1, num_single_layers=0), CompileCounter()
    with attach(network, recipe) as session, torch.no_grad():
        compiled = compile_network(network, counter)
        for step in range(TOTAL):
            session.begin_step(step, TOTAL)
            compiled(**one_sample(subject, step), return_dict=False)
    return counter.frame_count


@pytest.mark.parametrize(("compile_network", "driver"), [(whole, by_fields), (blocks, by_order)])
def test_contexts_take_no_graph_of_their_own(compile_network, driver, subject):
    network, recipe, counter = subject.network(num_layers=1, num_single_layers=0), counting_recipe(), CompileCounter()
    graphs = graphs_of_one_call(subject, compile_network, recipe)
    with attach(network, recipe) as session:
        eager = two_calls(driver, session, subject, network)
    with attach(network, recipe) as session:
        compiled = two_calls(driver, session, subject, compile_network(network, counter))
    assert_close(compiled, eager)
    assert 2 <= counter.frame_count <= graphs
