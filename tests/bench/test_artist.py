"""The times of pictures."""

import time

import pytest

from catome_bench.models.artist import Artist
from catome_bench.models.pipeline import load_shipped


@pytest.mark.parametrize("names", [["cat"], ["cat", "coffee"]])
def test_the_seconds_of_the_steps_are_those_of_the_run(names):
    artist = Artist(load_shipped("dit"), 3, 16)
    start = time.perf_counter()
    drawings = artist.draw_batch(names, range(len(names)), "")
    taken = time.perf_counter() - start
    assert [len(drawing.steps) for drawing in drawings] == [3] * len(names)
    assert 0.9 * taken < sum(drawing.seconds for drawing in drawings) <= taken
    assert not artist.pipeline.network._forward_pre_hooks
