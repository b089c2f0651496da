"""Caches over steps on the shipped models: they skip steps, begin empty, and leave nothing behind."""

from itertools import groupby

import pytest
import torch

from catome_adapters import attach
from catome_bench.models import load_shipped
from catome_bench.models.artist import Artist, unmerged_is_fine
from catome_bench.races.step_caches import StepCache, magnitude_ratios, step_caches
from catome_bench.races.variants import ON_TOP, variants
from probes import anatomy

pytestmark = pytest.mark.thorough

STEPS = 8


@pytest.fixture(scope="module", params=["unet", "dit"])
def artist(request) -> Artist:
    return Artist(load_shipped(request.param), STEPS, 32)


def name_of(artist: Artist) -> str:
    return "unet" if artist.pipeline.component == "unet" else "dit"


def caches_of(artist: Artist) -> dict[str, StepCache]:
    return step_caches(name_of(artist), STEPS)


def draw(artist: Artist) -> torch.Tensor:
    return artist.draw("cat", 0, "").picture


def test_cache_skips_steps_begins_empty_and_leaves_nothing_behind(artist):
    pipeline, whole = artist.pipeline, draw(artist)
    before = anatomy(pipeline.network)
    for cache in caches_of(artist).values():
        pictures = []
        for _ in range(2):
            with cache(pipeline):
                pictures.append(draw(artist))
        assert torch.equal(*pictures)
        assert anatomy(pipeline.network) == before
    assert not torch.equal(pictures[0], whole) and torch.equal(draw(artist), whole)


def test_more_is_skipped_the_longer_the_interval_or_the_larger_the_threshold(artist):
    """Counted in samples that the last feed-forward, or the middle of the UNet, computes."""
    pipeline, samples = artist.pipeline, []
    projection = [module for name, module in pipeline.network.named_modules() if name.endswith("ff.net.0.proj")][-1]
    if name_of(artist) == "unet":
        projection = pipeline.network.mid_block.resnets[0].conv1
    handle = projection.register_forward_pre_hook(lambda _, args: samples.append(len(args[0])))
    counts = {}
    for name, cache in caches_of(artist).items():
        samples.clear()
        with cache(pipeline):
            draw(artist)
        counts[name] = sum(samples)
    handle.remove()
    for kind, names in groupby(counts, key=lambda name: name.split()[0]):
        of_kind = [counts[name] for name in names]
        assert 2 * STEPS > of_kind[-1] > 0 and of_kind == sorted(of_kind, reverse=True), (kind, of_kind)
        # A small threshold may skip nothing; an interval always does.
        assert kind in ("FirstBlock", "MagCache") or 2 * STEPS > of_kind[0] > of_kind[-1], (kind, of_kind)


def test_mag_cache_knows_how_the_residual_of_every_step_grows():
    ratios = magnitude_ratios("dit", STEPS)
    assert len(ratios) == STEPS and ratios[0] == 1 and all(0.2 < ratio < 5 for ratio in ratios)
    assert len(set(ratios)) == STEPS


def test_on_top_is_the_cache_with_a_session_inside(artist):
    name = next(iter(caches_of(artist)))
    variant = variants(STEPS, name_of(artist))[f"{name} + {ON_TOP}"]
    assert variant.family == "on top"
    with unmerged_is_fine():
        with caches_of(artist)[name](artist.pipeline), attach(artist.pipeline, ON_TOP):
            inside = draw(artist)
        with variant.apply(artist.pipeline):
            assert torch.equal(draw(artist), inside)
