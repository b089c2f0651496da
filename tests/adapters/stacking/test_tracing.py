"""Shape inference and tracing of a network leave its session as it was."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_map_only

from catome_adapters import RECIPES, MergeSession, attach
from running import TOTAL, assert_same, make_recipe
from zoo.transformers import ARCHITECTURES
from zoo.vits import VITS, images

DIT = ARCHITECTURES["DiT"]

# Of the network's own, which exist only while it is traced.
pytestmark = [
    pytest.mark.usefixtures("without_gradients"),
    pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning"),
]


def in_fake_mode(network: nn.Module, inputs: dict[str, Any]) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        network(**tree_map_only(Tensor, mode.from_tensor, inputs))


WAYS: dict[str, Callable[[nn.Module, dict[str, Any]], Any]] = {
    "export": lambda network, inputs: torch.export.export(network, (), inputs),
    "fake tensors": in_fake_mode,
}


def run(session: MergeSession, network: nn.Module, trace: Callable[[], Any]) -> tuple[list[Tensor], str]:
    """Predictions of some steps, each traced before it is computed, and what was done."""
    predictions: list[Tensor] = []
    for step in (0, 1, 3):
        session.begin_step(step, TOTAL)
        trace()
        predictions.append(DIT.call(network, seed=step))
    return predictions, session.summary().rows


@pytest.mark.thorough
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("metric", ["input", "output"])
def test_tracing_before_every_step_changes_nothing(way, metric):
    network, recipe = DIT.shallow(), make_recipe("block", capacity=None, metric=metric)
    with attach(network, recipe) as session:
        expected, done = run(session, network, lambda: None)
    with attach(network, recipe) as session:
        predictions, still_done = run(session, network, lambda: WAYS[way](network, DIT.inputs()))
    assert_same(predictions, expected)
    assert still_done == done


def test_a_checkpoint_that_was_only_traced_stays_due():
    network = DIT.shallow()
    with attach(network, make_recipe()) as session:
        for step in (0, 3, 4):
            session.begin_step(step, TOTAL)
            if step == 3:
                torch.export.export(network, (), DIT.inputs(seed=step))
            else:
                DIT.call(network, seed=step)
        assert [row.checkpoint for row in session.summary().rows] == [True] * len(session.summary().rows)


@pytest.mark.parametrize("name", ["vit", "tome"])
def test_shapes_of_a_network_on_the_meta_device(name):
    network = VITS["ViT"].network()
    with attach(network, RECIPES[name]):
        before = network(images())
        network.to("meta")
        assert network(images().to("meta")).shape == before.shape


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["vit", "tome"])
def test_exported_vit_merges_other_images_as_the_network_does(name):
    network = VITS["ViT"].network()
    with attach(network, RECIPES[name]):
        exported = torch.export.export(network, (images(),)).module()
        for seed in range(2):
            assert_same(exported(images(seed=seed)), network(images(seed=seed)))


def test_jit_trace_is_refused_with_what_to_do():
    network, refused = VITS["ViT"].network(), pytest.raises(RuntimeError, match=r"torch\.jit\.trace.*torch\.export")
    with attach(network, RECIPES["vit"]), refused:
        torch.jit.trace(network, images())
