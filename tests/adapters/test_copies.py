"""Copies of an attached network are not attached, and those of what reports its steps are not observed."""

import copy
import pickle
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance

from catome_adapters import attach
from probes import anatomy
from running import SCOPES, make_recipe, progressive_recipe
from zoo.transformers import ARCHITECTURES
from zoo.unet_pipelines import class_pipeline, draw
from zoo.vits import VITS, images

pytestmark = pytest.mark.usefixtures("without_gradients")


def by_pickle(original):
    return pickle.loads(pickle.dumps(original))


COPIES = [copy.copy, copy.deepcopy, by_pickle]


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
    assert len(twin.forward_intermediates(images(), intermediates_only=True)) == 3
    assert vars(twin).keys() == vars(network).keys()


def test_while_attached_a_self_attention_has_a_class_of_the_same_name():
    network = ARCHITECTURES["Flux"].network()
    attention = network.transformer_blocks[0].attn
    kind, before = type(attention), anatomy(network)
    with attach(network, make_recipe()):
        assert isinstance(attention, kind)
        assert (type(attention).__name__, type(attention).__module__) == (kind.__name__, kind.__module__)
    assert type(attention) is kind
    assert anatomy(network) == before


@pytest.mark.parametrize("make_copy", COPIES)
def test_a_copy_of_a_scheduler_drives_neither_the_original_nor_the_session(make_copy):
    """Pipelines with two modalities step a copy of their scheduler."""
    pipe = class_pipeline()
    before = set(vars(pipe.scheduler))
    with attach(pipe) as session:
        pipe.scheduler.set_timesteps(5)
        twin = make_copy(pipe.scheduler)
        assert type(twin) is type(pipe.scheduler) and set(vars(twin)) == before
        twin.set_timesteps(7)
        assert (len(twin.timesteps), len(pipe.scheduler.timesteps)) == (7, 5)
        assert repr(session).endswith("step=0 of 5)")
    pipe.scheduler.set_timesteps(4)
    twin.set_timesteps(3)
    assert (len(twin.timesteps), len(pipe.scheduler.timesteps)) == (3, 4)


@pytest.mark.parametrize("make_copy", COPIES)
def test_a_copy_of_a_guider_is_not_observed(make_copy):
    model = ARCHITECTURES["DiT"]
    pipeline = SimpleNamespace(transformer=model.network(), guider=ClassifierFreeGuidance())
    with attach(pipeline, make_recipe()) as session:
        twin = make_copy(pipeline.guider)
        twin.set_state(step=3, num_inference_steps=6, timestep=torch.tensor(0))
        assert "step=None" in repr(session)
    assert set(vars(twin)) == set(vars(pipeline.guider))


@pytest.mark.parametrize("make_copy", COPIES)
def test_a_copy_of_a_network_has_contexts_of_its_own(make_copy):
    network = ARCHITECTURES["Flux"].network()
    with attach(network, make_recipe()) as session:
        twin = make_copy(network)
        with twin.cache_context("cond", step_index=0, num_inference_steps=6):
            assert "step=None" in repr(session)
    assert type(twin).cache_context.__get__(twin) == twin.cache_context


@pytest.mark.parametrize("make_copy", [copy.deepcopy, by_pickle])
def test_a_copy_of_a_pipeline_is_attached_on_its_own(make_copy):
    pipe = class_pipeline()
    alone = draw(pipe)
    with attach(pipe, make_recipe()) as session:
        twin = make_copy(pipe)
        merged = draw(pipe)
        assert torch.equal(draw(twin), alone)
        with attach(twin, make_recipe()):
            assert torch.equal(draw(twin), merged)
        assert session.summary().rows[-1].step == 4


def test_what_was_replaced_on_an_observed_object_is_in_its_copy_too():
    pipe = class_pipeline()
    pipe.scheduler.note = "mine"
    pipe.scheduler.step = wrapper = partial(pipe.scheduler.step)
    with attach(pipe):
        twin = copy.copy(pipe.scheduler)
    assert twin.step is wrapper and twin.note == "mine"
