"""Calls of video networks that differ from those of their tiny networks in the zoo."""

import pytest
import torch

from catome_adapters import attach
from catome_adapters.architectures.measures import drawn_frames
from catome_adapters.sites.grid import GridSize
from running import ONCE, TOTAL, make_recipe
from zoo.more_videos import LTX2, MOTIF_VIDEO
from zoo.other_videos import KANDINSKY6

pytestmark = pytest.mark.usefixtures("without_gradients")


@pytest.mark.parametrize("scope", ["attention", "keys"])
def test_blocks_that_are_not_to_attend_are_left_alone(scope):
    """Spatio-temporal guidance, which the pipelines of LTX-2 have switched on."""
    network = LTX2.network()
    unmerged = LTX2.call(network, spatio_temporal_guidance_blocks=[0, 1])
    with attach(network, make_recipe(scope, schedule=ONCE)) as session:
        session.begin_step(0, TOTAL)
        assert torch.equal(LTX2.call(network, spatio_temporal_guidance_blocks=[0, 1]), unmerged)
        session.begin_step(0, TOTAL)
        one_attends = LTX2.call(network, spatio_temporal_guidance_blocks=[1])
        assert session.summary().merged_fraction > 0.2
    assert not torch.allclose(one_attends, LTX2.call(network, spatio_temporal_guidance_blocks=[1]), atol=1e-4)


def test_a_grid_of_more_tokens_than_there_are_is_an_error():
    network = LTX2.network()
    with attach(network, make_recipe()) as session:
        session.begin_step(0, TOTAL)
        with pytest.raises(ValueError, match="got 108 tokens; the model's input gives a grid of 4 x 6 x 6"):
            LTX2.call(network, num_frames=4)


def test_the_frame_of_a_given_image_is_not_in_the_grid():
    """Kandinsky 6 appends it to the frames that are drawn, and gives it a type of its own."""
    measure = drawn_frames(KANDINSKY6.network())
    frames = torch.zeros(1, 4, 6, 8, 4)
    assert measure({"hidden_states": frames}) == GridSize((4, 3, 4), 0)
    types = torch.tensor([[0, 0, 0, 1]])
    assert measure({"hidden_states": frames, "visual_token_type_ids": types}) == GridSize((3, 3, 4), 12)


@pytest.mark.parametrize("segment", [2, 3])
def test_no_segment_reaches_into_the_decoder(segment):
    """The decoder of Motif-Video takes the video as it was before the first block."""
    network = MOTIF_VIDEO.network(num_single_layers=4, num_decoder_layers=2)
    with attach(network, make_recipe("block", segment=segment, schedule=ONCE)) as session:
        session.begin_step(0, TOTAL)
        assert MOTIF_VIDEO.call(network).isfinite().all()
        names = [row.site for row in session.summary().rows]
    assert [name for name in names if name.startswith("single")] == [
        "single_transformer_blocks.0 to 1",
        "single_transformer_blocks.2",
        "single_transformer_blocks.3",
    ]
