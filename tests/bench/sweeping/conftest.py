"""A tiny pipeline, and features that are the pixels themselves."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from catome_bench import sweep as sweeping
from catome_bench.measure.features import Features, open_features
from zoo.class_pipelines import tiny_shipped
from zoo.pipeline_parts import quiet


@pytest.fixture
def pipe() -> Any:
    return quiet(tiny_shipped("dit"))


@pytest.fixture
def pixels(monkeypatch) -> Features:
    """Every pixel is a sample of three channels."""
    features = Features("pixels", lambda picture: picture.flatten(1).mT)
    monkeypatch.setattr(
        sweeping, "open_features", lambda folder, device: features if folder is None else open_features(folder)
    )
    return features


@pytest.fixture
def sweep(pipe, ticks, pixels, tmp_path) -> Any:
    """A small sweep of one table into a folder of this name, or with other arguments."""

    def run(folder: str | Path = "sweep", **changes: Any) -> sweeping.Swept:
        options = {"prompts": ["cat", "rocket"], "tables": ["comparison"], "seeds": 1, "steps": 2}
        options |= {"pipe": pipe, "options": {"size": 16}, "progress": False, "output": tmp_path / folder} | changes
        return partial(sweeping.sweep, options.pop("pipe"), options.pop("prompts"))(**options)

    return run
