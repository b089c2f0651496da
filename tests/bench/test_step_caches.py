"""Caches over steps on the shipped models: they skip steps, begin empty, and leave nothing behind."""

import pytest
import torch

from catome_adapters import attach
from catome_bench.models import load_shipped
from catome_bench.models.artist import Artist, unmerged_is_fine
from catome_bench.races.step_caches import step_caches
from catome_bench.races.variants import ON_TOP, variants
from probes import anatomy

STEPS = 8


@pytest.fixture(scope="module", params=["unet", "dit"])
def artist(request) -> Artist:
    return Artist(load_shipped(request.param), STEPS, 32)


def name_of(artist: Artist) -> str:
    return "unet" if artist.pipeline.component == "unet" else "dit"


def draw(artist: Artist) -> torch.Tensor:
    return artist.draw("cat", 0, "").picture


def test_cache_skips_steps_begins_empty_and_leaves_nothing_behind(artist):
    pipeline, whole = artist.pipeline, draw(artist)
    before = anatomy(pipeline.network)
    for cache in step_caches(name_of(artist)).values():
        pictures = []
        for _ in range(2):
            with cache(pipeline):
                pictures.append(draw(artist))
        assert torch.equal(*pictures)
        assert anatomy(pipeline.network) == before
    assert not torch.equal(pictures[0], whole) and torch.equal(draw(artist), whole)


def test_most_blocks_are_skipped_in_most_steps(artist):
    """The longer the interval, the fewer calls of the projections in the blocks."""
    pipeline, counts = artist.pipeline, []
    calls: list[None] = []
    names = [name for name in step_caches(name_of(artist)) if not name.startswith("FirstBlock")]
    projection = next(module for name, module in pipeline.network.named_modules() if name.endswith("attn1.to_k"))
    if name_of(artist) == "unet":
        projection = pipeline.network.mid_block.resnets[0].conv1
    handle = projection.register_forward_pre_hook(lambda *_: calls.append(None))
    for name in names:
        calls.clear()
        with step_caches(name_of(artist))[name](pipeline):
            draw(artist)
        counts.append(len(calls))
    handle.remove()
    assert STEPS > counts[0] > counts[-1] > 0 and counts == sorted(counts, reverse=True)


def test_on_top_is_the_cache_with_a_session_inside(artist):
    name = next(iter(step_caches(name_of(artist))))
    variant = variants(STEPS, name_of(artist))[f"{name} + {ON_TOP}"]
    assert variant.family == "on top"
    with unmerged_is_fine():
        with step_caches(name_of(artist))[name](artist.pipeline), attach(artist.pipeline, ON_TOP):
            inside = draw(artist)
        with variant.apply(artist.pipeline):
            assert torch.equal(draw(artist), inside)
