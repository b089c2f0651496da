"""The times of pictures."""

import time

import pytest

from catome_bench.models.artist import Artist
from catome_bench.models.pipeline import load_shipped

PAUSE = 0.02


def pausing(function):
    def paused(*args, **kwargs):
        time.sleep(PAUSE)
        return function(*args, **kwargs)

    return paused


@pytest.mark.parametrize("names", [["cat"], ["cat", "coffee"]])
def test_the_seconds_of_the_steps_are_those_of_the_run(names, monkeypatch):
    """With what is before the first call of the network, and after the last."""
    artist = Artist(load_shipped("dit"), 3, 16)
    for method in ("set_timesteps", "step"):
        monkeypatch.setattr(artist.pipeline.scheduler, method, pausing(getattr(artist.pipeline.scheduler, method)))
    start = time.perf_counter()
    drawings = artist.draw_batch(names, range(len(names)), "")
    taken = time.perf_counter() - start
    assert [len(drawing.steps) for drawing in drawings] == [3] * len(names)
    assert (1 + 3) * PAUSE < sum(drawing.seconds for drawing in drawings) <= taken
    assert all(len(names) * drawing.steps[0] > 2 * PAUSE for drawing in drawings)
    assert not artist.pipeline.network._forward_pre_hooks
