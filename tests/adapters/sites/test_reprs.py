"""What is printed of sites and sessions fits a line each, whatever the model's size."""

import pytest

from catome_adapters import MergeRecipe, attach, find_sites
from catome_core import AdaptiveMerge
from zoo.unets import sd_unet, sdxl_unet
from zoo.vits import VITS


@pytest.mark.parametrize("make", [sd_unet, sdxl_unet, VITS["ViT"].network])
def test_sites_are_printed_in_a_line_each(make):
    for site in find_sites(make()):
        assert repr(site).startswith(f"MergeSite({site.name!r}, {type(site.block).__name__}, ")
        assert len(repr(site)) < len(site.name) + 80 and "\n" not in repr(site)


def test_a_site_says_where_it_is_and_how_many_tokens_it_has():
    site = find_sites(VITS["ViT"].network())[0]
    height, width = site.shape
    assert repr(site) == f"MergeSite('blocks.0', Block, {site.prefix} + {height} x {width} tokens, level 1)"
    assert "no default size" in repr(find_sites(sd_unet(sample_size=None))[0])


def test_a_session_is_printed_in_a_line():
    recipe = MergeRecipe(AdaptiveMerge(0.5), scope="block", segment=2, levels=(1,))
    with attach(sd_unet(), recipe) as session:
        assert repr(session) == f"MergeSession({len(session.sites)} sites, scope='block', step=None of 0)"
        assert {len(repr(one).splitlines()) for one in [*session.sites, *session.skipped]} == {1}
        assert all(repr(one) == f"SkippedSite({one.name!r}, {one.reason!r})" for one in session.skipped)
        segment = session._runs.each[0].attachment.segments[0]
        assert repr(segment) == f"Segment({segment.site.name!r}, {len(segment.sites)} blocks, AroundBlock)"
    assert repr(session).endswith(", detached)")
