"""Calls of video networks that differ from those of their tiny networks in the zoo."""

import pytest
import torch

from catome_adapters import attach
from running import ONCE, TOTAL, make_recipe
from zoo.more_videos import LTX2

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
