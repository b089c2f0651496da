"""Draw pictures with a shipped model, with and without merging."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from catome_adapters import RECIPES, MergeRecipe, SessionSummary, attach, find_sites
from catome_adapters.recipes.calibrated import Recipe
from catome_bench.models.pipeline import ClassPipeline
from catome_core import AdaptiveMerge, CheckpointSchedule, MergePlan, MergeWarning

CLASSES = ("cat", "coffee", "flower", "temple", "rocket")


@contextmanager
def unmerged_is_fine() -> Iterator[None]:
    """While this is open, no warning says that nothing merges."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MergeWarning)
        yield


class Drawing(NamedTuple):
    """One picture.

    Attributes:
        picture: The picture on the host, (3, size, size), float, in [0, 1].
        steps: The seconds of each step: from one call of the network to the next, with what is before and after all.
        beside: Those of the unmerged run that was drawn beside it, in the same process.
        removed: Share of the keys that merging removed from self-attention at the top level, where it was measured.
    """

    picture: Tensor
    steps: Sequence[float]
    beside: Sequence[float] = ()
    removed: float = 0.0

    @property
    def seconds(self) -> float:
        """The time it took."""
        return sum(self.steps)

    @property
    def speedup(self) -> float:
        """Over the unmerged run beside it."""
        return sum(self.beside) / self.seconds


class Pair(NamedTuple):
    """The same class and seed, drawn without and with merging; `summary` is the merged run's."""

    name: str
    baseline: Drawing
    merged: Drawing
    summary: SessionSummary


class Recording(NamedTuple):
    """A run in which every layer finds the pairs above the threshold anew at every step.

    Attributes:
        history: The plans of every step, by site.
        summary: Of the run.
    """

    history: list[dict[str, MergePlan]]
    summary: SessionSummary


class Artist:
    """Draws pictures, each from a seed of its own."""

    def __init__(self, pipeline: ClassPipeline, steps: int, size: int) -> None:
        self.pipeline, self.steps, self.size = pipeline, steps, size

    def draw(self, name: str, seed: int, label: str) -> Drawing:
        """Draw one picture of class `name`, under a progress bar with this label."""
        (drawing,) = self.draw_batch([name], [seed], label)
        return drawing

    def draw_batch(self, names: Sequence[str], seeds: Sequence[int], label: str) -> list[Drawing]:
        """Draw one picture of each class in one call, of whose time each has the same share."""
        self.pipeline.set_progress_bar_config(desc=f"{names[0]:>9}, {label:<8}", leave=False)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        calls: list[float] = []
        # Ahead of all other hooks, whose time counts.
        hook = self.pipeline.network.register_forward_pre_hook(
            lambda *_: calls.append(time.perf_counter()), prepend=True
        )
        start = time.perf_counter()
        try:
            pictures = self.pipeline(names, size=self.size, num_inference_steps=self.steps, generator=generators)
        finally:
            hook.remove()
        # Copying to the host waits for the device.
        pictures = pictures.cpu()
        steps = [(after - before) / len(names) for before, after in pairwise([start, *calls[1:], time.perf_counter()])]
        return [Drawing(picture, steps) for picture in pictures]

    def draw_pair(self, name: str, seed: int, recipe: Recipe) -> Pair:
        """Draw a picture without and with merging, one right after the other, so that conditions are the same."""
        baseline = self.draw(name, seed, "baseline")
        with attach(self.pipeline, recipe) as session:
            merged = self.draw(name, seed, "merged")
            return Pair(name, baseline, merged, session.summary())

    def record(self, name: str, seed: int, recipe: Recipe) -> Recording:
        """Draw a picture, recording all pairs above the threshold in the layers of the top level (paper, Fig. 4).

        Where the recipe has no threshold, it is that of `"keys"`.
        """
        like = recipe if isinstance(recipe, MergeRecipe) else RECIPES["keys"]
        if not isinstance(like.policy, AdaptiveMerge):
            like = RECIPES["keys"]
        policy = replace(like.policy, capacity=1.0, spare="pad")
        # "all": whether it gains time or not.
        every = replace(
            like, policy=policy, schedule=CheckpointSchedule.every(1, self.steps), levels="all", during=(0.0, 1.0)
        )
        sites = find_sites(self.pipeline)
        top = [site for site in sites if site.level == min(one.level for one in sites)]
        history: list[dict[str, MergePlan]] = []
        with attach(self.pipeline, every, sites=top) as session:
            handle = self.pipeline.network.register_forward_hook(lambda *_: history.append(session.plans()))
            try:
                self.draw(name, seed, "pairs")
            finally:
                handle.remove()
            return Recording(history, session.summary())
