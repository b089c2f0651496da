"""UNets that attend over frames as well."""

import pytest
import torch

from catome_adapters import attach
from running import unet_recipe
from zoo.video_unets import animate_diff, call_video, stable_video, text_to_video


@pytest.mark.parametrize("model", [animate_diff, text_to_video, stable_video])
@torch.no_grad()
def test_attention_over_frames_is_no_site_and_attention_within_them_is(model):
    network = model().eval()
    unpatched = call_video(network)
    with attach(network, unet_recipe(capacity=None)) as session:
        assert session.sites
        assert not any("motion" in site.name or "temp" in site.name for site in session.sites)
        session.begin_step(0, 10)
        merged = call_video(network)
        session.begin_step(1, 10)
        assert session.summary().merged_fraction > 0
    assert merged.isfinite().all() and not torch.equal(merged, unpatched)
