"""Eager runs whose calls were too small to gain, and then the network is compiled, in which they gain."""

from contextlib import contextmanager

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from catome_adapters import attach, compile_blocks
from catome_adapters.hooks.settled import SettledRun
from catome_adapters.prediction.worth import Worth
from running import TOTAL, assert_same, call, lattice_recipe, make_recipe
from zoo.transformers import ARCHITECTURES

pytestmark = [
    pytest.mark.usefixtures("fresh_compiler", "without_gradients", "gains_if_compiled"),
    pytest.mark.filterwarnings("ignore:nothing merged in this run", "ignore:merging is predicted to"),
]

MODEL = ARCHITECTURES["DiT"]
RECIPES = {
    "keys": make_recipe("keys", levels="top"),
    "attention": make_recipe(levels="top", threshold=0.7),
    "lattice": lattice_recipe(levels="top"),
    "second half": make_recipe("keys", levels="top", during=(0.5, 1.0)),
}


@pytest.fixture
def gains_if_compiled(monkeypatch) -> None:
    monkeypatch.setattr(Worth, "at_size", lambda self, weights, key, total, compiled=False: compiled)


@contextmanager
def never_settled(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(SettledRun, "may_begin", False)
        yield


def whole(network, counter):
    return torch.compile(network, fullgraph=True, backend=counter)


def in_place(network, counter):
    network.compile(fullgraph=True, backend=counter)
    return network


def by_block(network, counter):
    compile_blocks(network, fullgraph=True, backend=counter)
    return network


def one_of_two_blocks(network, counter):
    network.transformer_blocks[1] = torch.compile(network.transformer_blocks[1], fullgraph=True, backend=counter)
    return network


BETWEEN, WITHIN = TOTAL, TOTAL + 3
CASES = [(whole, "keys", WITHIN), (in_place, "lattice", BETWEEN)]
CASES += [(by_block, "second half", BETWEEN), (one_of_two_blocks, "attention", BETWEEN)]


@pytest.mark.thorough
@pytest.mark.parametrize(("compiled", "recipe", "when"), CASES)
def test_it_merges_from_the_first_compiled_step_on(compiled, recipe, when, monkeypatch):
    """And takes no graph more, as if nothing had been settled."""

    def outcome():
        torch.compiler.reset()
        network, counter = MODEL.network() if compiled is one_of_two_blocks else MODEL.shallow(), CompileCounter()
        with attach(network, RECIPES[recipe]) as session:
            eager = [call(MODEL, network, session, step % TOTAL) for step in range(when)]
            network = compiled(network, counter)
            outputs, said = [], []
            for step in range(when, 3 * TOTAL):
                outputs.append(call(MODEL, network, session, step % TOTAL))
                said.append(session.summary()._replace(seconds=None))
            return eager + outputs, said, counter.frame_count

    outputs, said, graphs = outcome()
    with never_settled(monkeypatch):
        expected, expected_words, most_graphs = outcome()
    assert_same(outputs, expected)
    assert said == expected_words
    assert 0 < graphs <= most_graphs
    assert any(summary.merged_fraction for summary in said)
