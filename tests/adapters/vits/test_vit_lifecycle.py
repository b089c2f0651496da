"""One life-cycle, the same for every vision transformer and scope: attach, run, detach."""

import pytest
import torch

from catome_adapters import attach
from probes import AttentionKeys, anatomy
from running import assert_close, vit_recipe
from zoo.vits import SIZES, VITS, images

pytestmark = pytest.mark.usefixtures("without_gradients")


def test_dense_features_keep_their_length_and_change(vit, network, scope):
    features, intermediates = network.forward_intermediates(images(), output_fmt="NLC")
    logits = network(images())
    with attach(network, vit_recipe(scope)):
        merged, merged_intermediates = network.forward_intermediates(images(), output_fmt="NLC")
        merged_logits = network(images())
    pairs = [(merged, features), (merged_logits, logits), *zip(merged_intermediates, intermediates, strict=True)]
    for changed, unpatched in pairs:
        assert changed.shape == unpatched.shape and changed.isfinite().all()
        assert not torch.allclose(changed, unpatched, rtol=1e-3, atol=1e-4)


def test_a_place_for_every_source_is_the_unpatched_model_bit_by_bit(vit, network, scope):
    unpatched = vit.call(network)
    with attach(network, vit_recipe(scope, threshold=1.0, capacity=1.0)):
        assert torch.equal(vit.call(network), unpatched)


def test_attention_stays_fused_and_sees_the_slots(vit, network, scope):
    with attach(network, vit_recipe(scope)) as session, AttentionKeys() as recorded:
        vit.call(network)
        slots = [row.slots for row in session.summary().rows]
    assert [keys.shape[-2] for keys in recorded.keys] == slots == [vit.prefix + 16 + 16] * 3


def test_every_call_recomputes_and_no_step_is_needed(vit, network, scope):
    with attach(network, vit_recipe(scope)):
        fresh = vit.call(network, seed=1)
    with attach(network, vit_recipe(scope)) as session:
        vit.call(network, batch=3)
        assert torch.equal(vit.call(network, seed=1), fresh)
        assert session.summary().checkpoints == (0,)
        assert {row.step for row in session.summary().rows} == {0}
        assert len(session.summary().rows) == 3


def test_other_image_size_merges_on_its_own_grid(vit, scope):
    network = vit.network(img_size=SIZES[1])
    with attach(network, vit_recipe(scope)) as session:
        assert vit.call(network, size=SIZES[1]).isfinite().all()
        assert "6 x 10" in session.report()


@pytest.mark.parametrize("name", ["ViT", "DINOv2 registers", "DINOv3", "RoPE mixed", "SigLIP"])
def test_images_of_any_size(name, scope):
    vit, network = VITS[name], VITS[name].network(dynamic_img_size=True)
    with attach(network, vit_recipe(scope)) as session:
        for size in (*SIZES, (20, 28)):
            assert vit.call(network, size=size).shape[1] == vit.prefix + size[0] * size[1] // 16
            assert f"{size[0] // 4} x {size[1] // 4}" in session.report()


def test_detach_restores_exactly(vit, network, scope):
    before, unpatched = anatomy(network), vit.call(network)
    with attach(network, vit_recipe(scope)):
        vit.call(network)
        assert list(network.state_dict()) == before["state_dict"]
        with pytest.raises(RuntimeError, match=r"call its detach\(\) first"):
            attach(network, vit_recipe(scope))
    assert anatomy(network) == before
    assert torch.equal(vit.call(network), unpatched)


def test_a_sample_does_not_depend_on_its_batch_mates(vit, network, scope):
    with attach(network, vit_recipe(scope)):
        together, alone = (vit.call(network, batch=batch) for batch in (3, 1))
    assert_close(together[:1], alone)
