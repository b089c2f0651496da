"""A clock for all measurements of pictures."""

from itertools import count
from typing import Any

import pytest

from catome_bench.comparison import drawing


@pytest.fixture
def ticks(monkeypatch) -> None:
    """A clock that every reading moves on by a second, so that every picture of so many steps takes the same time."""
    seconds = count()

    def stopwatch(run: Any) -> float:
        start = next(seconds)
        run()
        return next(seconds) - start

    monkeypatch.setattr(drawing, "choose_stopwatch", lambda device: stopwatch)
