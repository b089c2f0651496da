"""Text and image in one sequence: calls that have no grid, and what happens to the sequence between blocks."""

import pytest
import torch

from catome_adapters import attach
from running import ONCE, SCOPES, call, make_recipe
from zoo.single_streams import HIDREAM, LUMINA2, OMNIGEN, Z_IMAGE

pytestmark = pytest.mark.usefixtures("without_gradients")

OTHERS = {
    "one size": (Z_IMAGE, {"x": [torch.zeros(4, 1, 16, 16), torch.zeros(4, 1, 12, 16)]}),
    "omni mode": (Z_IMAGE, {"x": [[torch.zeros(4, 1, 16, 16)]] * 2}),
    "one prompt at a time": (LUMINA2, {"encoder_attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}),
    "hidden_states has shape": (HIDREAM, {"hidden_states": torch.zeros(2, 48, 16)}),
}


@pytest.mark.parametrize("reason", OTHERS)
def test_call_without_a_grid_of_its_own_is_refused(reason):
    subject, changes = OTHERS[reason]
    network = subject.network()
    with attach(network, make_recipe()) as session:
        session.begin_step(0, 1)
        with pytest.raises(ValueError, match=reason):
            network(**subject.inputs() | changes)


def test_texts_of_one_length_may_be_padded_further():
    """The last token of the text is padding, which the network cuts off; another value there changes nothing."""
    network, inputs = LUMINA2.network(), LUMINA2.inputs()
    with attach(network, make_recipe(schedule=ONCE)) as session:
        session.begin_step(0, 1)
        merged = network(**inputs).sample
        inputs["encoder_hidden_states"][:, -1] += 1
        session.begin_step(0, 1)
        assert torch.equal(network(**inputs).sample, merged)


def test_frames_of_a_list_are_a_third_dimension():
    network = Z_IMAGE.network()
    with attach(network, make_recipe()) as session:
        session.begin_step(0, 1)
        network(**Z_IMAGE.inputs() | {"x": list(torch.randn(2, 4, 2, 16, 16))})
        session.begin_step(0, 1)
        assert "2 x 8 x 8" in session.report()


@pytest.mark.parametrize("scope", SCOPES)
def test_controlnet_adds_to_all_tokens(scope):
    network, inputs = Z_IMAGE.network(), Z_IMAGE.inputs(1)
    added = {"controlnet_block_samples": {0: torch.randn(1, 96, 16)}}
    with attach(network, make_recipe(scope)) as session:
        session.begin_step(0, 1)
        without = network(**inputs).sample[0]
        session.begin_step(0, 1)
        assert not torch.allclose(network(**inputs, **added).sample[0], without)
        assert {plan.size.shape[1] < 64 for plan in session.plans().values()} == {True}


def test_segments_end_where_the_network_cuts_the_sequence():
    """HiDream gives every block a text of its own, and in single streams cuts it off by the number of tokens."""
    network = HIDREAM.network()
    with attach(network, make_recipe("block", schedule=ONCE, segment=2)) as session:
        merged = call(HIDREAM, network, session)
        assert list(session.plans()) == [
            "double_stream_blocks.0 to 1",
            "single_stream_blocks.0",
            "single_stream_blocks.1",
        ]
    assert not torch.allclose(merged, HIDREAM.call(network), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scope", SCOPES)
def test_input_images_are_part_of_the_text(scope):
    network = OMNIGEN.network()
    images = {"input_img_latents": [torch.randn(1, 4, 4, 4)], "input_image_sizes": {0: [[0, 4]]}}
    with attach(network, make_recipe(scope)) as session:
        merged = call(OMNIGEN, network, session)
        session.begin_step(1, 6)
        changed = network(**OMNIGEN.inputs() | images).sample
        assert session.summary().merged_fraction > 0.2
    assert changed.isfinite().all()
    assert not torch.allclose(changed[0], merged[0])
