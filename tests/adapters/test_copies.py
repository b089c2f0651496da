"""Copies of an attached network are not attached."""

import copy
import pickle

import pytest
import torch

from catome_adapters import attach
from probes import anatomy
from running import SCOPES, make_recipe, progressive_recipe
from zoo.transformers import ARCHITECTURES
from zoo.vits import VITS

pytestmark = pytest.mark.usefixtures("without_gradients")


def by_pickle(network):
    return pickle.loads(pickle.dumps(network))


@pytest.mark.parametrize("make_copy", [copy.deepcopy, by_pickle])
@pytest.mark.parametrize("name", ["DiT", "Flux", "Wan"])
@pytest.mark.parametrize("scope", SCOPES)
def test_a_copy_does_not_merge_and_can_be_attached(name, scope, make_copy):
    model, recipe = ARCHITECTURES[name], make_recipe(scope)
    network = model.network()
    unmerged, kinds = model.call(network), [type(module) for module in network.modules()]
    with attach(network, recipe) as session:
        session.begin_step(0, 6)
        merged = model.call(network)
        twin = make_copy(network)
        assert torch.equal(model.call(twin), unmerged)
        session.begin_step(0, 6)
        assert torch.equal(model.call(network), merged)
    assert [type(module) for module in twin.modules()] == kinds
    with attach(twin, recipe) as session:
        session.begin_step(0, 6)
        assert torch.equal(model.call(twin), merged)


@pytest.mark.parametrize("make_copy", [copy.deepcopy, by_pickle])
def test_a_copy_of_a_vit_does_not_merge(make_copy):
    model = VITS["ViT"]
    network = model.network()
    unmerged = model.call(network)
    with attach(network, progressive_recipe(0.4)):
        twin = make_copy(network)
    assert torch.equal(model.call(twin), unmerged)


def test_while_attached_a_self_attention_has_a_class_of_the_same_name():
    network = ARCHITECTURES["Flux"].network()
    attention = network.transformer_blocks[0].attn
    kind, before = type(attention), anatomy(network)
    with attach(network, make_recipe()):
        assert isinstance(attention, kind)
        assert (type(attention).__name__, type(attention).__module__) == (kind.__name__, kind.__module__)
    assert type(attention) is kind
    assert anatomy(network) == before
