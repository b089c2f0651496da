"""Draw the same pictures with every variant, one call after the other."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import mean
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from catome_adapters import MergeSession, find_sites
from catome_bench.models.artist import CLASSES, Artist, Drawing
from catome_bench.models.pipeline import ClassPipeline
from catome_bench.races.kept import KeptDrawings
from catome_bench.races.variants import REFERENCE, Variant


class Pictures(NamedTuple):
    """What each variant draws: the arguments of `run_pictures`."""

    steps: int
    images: int
    size: int
    batch: int

    @property
    def calls(self) -> list[Sequence[int]]:
        """The seeds of every call."""
        return [range(first, min(first + self.batch, self.images)) for first in range(0, self.images, self.batch)]


def draw_two_steps(pipeline: ClassPipeline, variant: Variant, pictures: Pictures) -> None:
    """The first calls of a process load kernels, and an error comes at once."""
    _draw(pipeline, variant, "warm up", pictures._replace(steps=2), pictures.calls[0])


def draw_in_turn(
    pipeline: ClassPipeline, able: Mapping[str, Variant], pictures: Pictures, kept: KeptDrawings
) -> dict[str, list[Drawing]]:
    """Every picture with every variant in turn.

    What is kept of a run that was broken off was drawn beside an unmerged run of its own: an hour later, or with other
    programs beside it, the machine may be another.
    """
    drawings: dict[str, list[Drawing]] = defaultdict(list)
    with tqdm(total=pictures.images * len(able), desc=f"{pictures.steps} steps", unit="picture") as bar:
        for seeds in pictures.calls:
            draw = functools.partial(_draw, pipeline, pictures=pictures, seeds=seeds)
            unmerged = functools.cache(functools.partial(draw, able[REFERENCE], REFERENCE))
            for name, variant in able.items():
                again = unmerged if name == REFERENCE else functools.partial(draw, variant, name)
                drawings[name] += kept.of(
                    [name, "-".join(map(str, seeds))], functools.partial(_beside, unmerged, again)
                )
                bar.update(len(seeds))
    return drawings


def _beside(unmerged: Callable[[], list[Drawing]], draw: Callable[[], list[Drawing]]) -> list[Drawing]:
    beside = [one.steps for one in unmerged()]
    return [one._replace(beside=steps) for one, steps in zip(draw(), beside, strict=True)]


def _draw(
    pipeline: ClassPipeline, variant: Variant, label: str, pictures: Pictures, seeds: Sequence[int]
) -> list[Drawing]:
    artist = Artist(pipeline, variant.steps(pictures.steps), pictures.size)
    motifs = [CLASSES[seed % len(CLASSES)] for seed in seeds]
    # Found before the variant is applied, because peers replace the class of a block.
    projections = [site.attention.get_submodule("to_k") for site in find_sites(pipeline) if site.level == 1]
    with variant.apply(pipeline) as session, _counted_keys(projections) as keys, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds[0])  # tomesd and ca-tome draw their destinations from the global generator
        drawings = artist.draw_batch(motifs, seeds, label)
        if isinstance(session, MergeSession):
            removed = mean(_removed_at_top(session))
        else:
            removed = 1 - mean(keys) / (pictures.size // pipeline.token_pixels) ** 2
    return [drawing._replace(removed=removed) for drawing in drawings]


def _removed_at_top(session: MergeSession) -> list[float]:
    rows = session.summary().rows
    most = max(row.tokens for row in rows)
    return [row.merged_fraction for row in rows if row.tokens == most]


@contextmanager
def _counted_keys(projections: Sequence[nn.Module]) -> Iterator[list[int]]:
    """The number of tokens that the keys of self-attention are computed from, call by call, for peers."""
    keys: list[int] = []
    handles = [one.register_forward_pre_hook(lambda _, args: keys.append(args[0].shape[1])) for one in projections]
    try:
        yield keys
    finally:
        for handle in handles:
            handle.remove()
