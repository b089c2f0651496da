"""The vision encoders of transformers: found by their structure, and one life-cycle for every scope."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from catome_adapters import RECIPES, MergeRecipe, attach, find_sites
from catome_core import MergePlan
from probes import AttentionKeys, Interrupted, anatomy, failing
from running import assert_close, vit_recipe
from zoo.encoders import ENCODERS, Encoder
from zoo.vits import SIZES, images

pytestmark = pytest.mark.usefixtures("without_gradients")


@pytest.fixture(params=ENCODERS)
def encoder(request) -> Encoder:
    return ENCODERS[request.param]


@pytest.fixture
def network(encoder) -> Any:
    return encoder.network()


@pytest.fixture(params=["attention", "keys", "block", "progressive"])
def recipe(request) -> MergeRecipe:
    return RECIPES["tome"] if request.param == "progressive" else vit_recipe(request.param)


def test_every_layer_is_a_site_with_its_grid_and_its_prefix(encoder, network):
    sites = find_sites(network)
    assert [site.name for site in sites] == [f"{encoder.folder}.{index}" for index in range(3)]
    assert {(site.shape, site.prefix, site.denoises) for site in sites} == {((8, 8), encoder.prefix, False)}


def test_merging_changes_the_features_keeps_their_shape_and_is_undone(encoder, network, recipe):
    before, unmerged = anatomy(network), encoder.call(network)
    with attach(network, recipe) as session:
        merged = encoder.call(network)
        assert session.summary().checkpoints == (0,) and session.summary().merged_fraction > 0
        with failing(network.get_submodule(f"{encoder.folder}.1.mlp")), pytest.raises(Interrupted):
            encoder.call(network, seed=1)
        assert torch.equal(encoder.call(network), merged)
    assert merged.shape == unmerged.shape and merged.isfinite().all()
    assert not torch.allclose(merged, unmerged, rtol=1e-3, atol=1e-4)
    assert anatomy(network) == before and torch.equal(encoder.call(network), unmerged)


def test_a_slot_for_every_source_is_the_unmerged_model_bit_by_bit(encoder, network, scope):
    unmerged = encoder.call(network)
    with attach(network, vit_recipe(scope, threshold=1.0, capacity=1.0)):
        assert torch.equal(encoder.call(network), unmerged)


def test_attention_stays_fused_sees_the_slots_and_takes_images_of_any_size(encoder, network, scope):
    with attach(network, vit_recipe(scope)) as session, AttentionKeys() as recorded:
        for size in SIZES:
            encoder.call(network, size=size)
            assert f"{size[0] // 4} x {size[1] // 4}" in session.report()
            assert [keys.shape[-2] for keys in recorded.keys[:3]] == [row.slots for row in session.summary().rows]
            recorded.keys.clear()
    assert session.summary().rows[0].slots == encoder.prefix + 15 + 15


def seen_by(layer: nn.Module) -> list[Any]:
    """Its arguments, before a session changes them, and what it returns afterwards."""
    calls: list[Any] = []
    layer.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args[0], kwargs)), with_kwargs=True)
    return calls


def sample_of(plan: MergePlan, sample: int) -> MergePlan:
    return MergePlan(*(part[sample] for part in plan[:3]))


def test_a_layer_runs_on_merged_tokens_at_the_positions_of_their_anchors(encoder, network):
    """Every token keeps itself and takes the change of its slot; class and register tokens are slots of their own."""
    layer = network.get_submodule(f"{encoder.folder}.1")
    alone, calls, outputs = deepcopy(layer), seen_by(layer), []
    with attach(network, vit_recipe("block")) as session:
        layer.register_forward_hook(lambda _, args, output: outputs.append(output))
        encoder.call(network)
        plans = session.plans()[f"{encoder.folder}.1"]
    tokens, options = calls[0]
    for sample in range(2):
        plan = sample_of(plans, sample)
        assert torch.equal(plan.slot[: encoder.prefix], torch.arange(encoder.prefix))
        assert (plan.size[: encoder.prefix] == 1).all()
        slots = torch.stack([tokens[sample][plan.slot == slot].mean(0) for slot in range(len(plan.size))])
        mask = plan.size.log().expand(1, 1, len(slots), -1)
        rows = options | at_anchors(options, plan.anchor[encoder.prefix :] - encoder.prefix)
        change = alone(slots[None], **rows | {"attention_mask": mask})[0] - slots
        assert_close(outputs[0][sample], tokens[sample] + change[plan.slot])


def at_anchors(options: dict[str, Any], anchors: Tensor) -> dict[str, Any]:
    given = options.get("position_embeddings")
    return {} if given is None else {"position_embeddings": tuple(rows[anchors] for rows in given)}


def test_a_sample_does_not_depend_on_its_batch_mates(encoder, network):
    with attach(network, vit_recipe("block")):
        together, alone = (encoder.call(network, batch=batch) for batch in (3, 1))
    assert_close(together[:1], alone)


def test_a_mask_of_the_caller_becomes_that_of_the_anchors():
    encoder = ENCODERS["ViTModel"]
    network = encoder.network(num_hidden_layers=1)
    layer, mask = network.layers[0], torch.rand(1, 1, 65, 65, generator=torch.Generator().manual_seed(0))
    alone, calls, outputs = deepcopy(layer), seen_by(layer), []
    with attach(network, vit_recipe("block", proportional=False)) as session:
        layer.register_forward_hook(lambda _, args, output: outputs.append(output))
        network(images(1), attention_mask=mask)
        plan = sample_of(session.plans()["layers.0"], 0)
    tokens = calls[0][0][0]
    slots = torch.stack([tokens[plan.slot == slot].mean(0) for slot in range(len(plan.size))])
    change = alone(slots[None], mask[:, :, plan.anchor][..., plan.anchor])[0] - slots
    assert_close(outputs[0][0], tokens + change[plan.slot])
