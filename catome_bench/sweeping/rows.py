"""The figures of every row, from the pictures in the folder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any, NamedTuple

from tqdm import tqdm

from catome_bench.measure.features import Features
from catome_bench.measure.fidelity import psnr, ssim
from catome_bench.measure.frechet import GrowingMoments, Moments
from catome_bench.measure.spread import Spread
from catome_bench.races.variants import REFERENCE
from catome_bench.sweeping.store import Store, StoredPicture
from catome_bench.sweeping.takes import Take


class SweptSample(NamedTuple):
    """One picture, beside the unmerged one of the same take."""

    seconds: float
    speedup: float
    psnr: float
    ssim: float
    merged: float | None

    @classmethod
    def of(cls, picture: StoredPicture, unmerged: StoredPicture) -> SweptSample:
        """Its figures."""
        pair = picture.values, unmerged.values
        return cls(picture.seconds, unmerged.seconds / picture.seconds, psnr(*pair), ssim(*pair), picture.merged)


@dataclass(frozen=True, kw_only=True)
class SweptRow:
    """One row of the tables.

    Attributes:
        name: Of the row.
        family: "unmerged", "ours", "peer" or "fewer steps".
        seconds: For each picture, in the median.
        speedup: Over the unmerged picture of the same take.
        psnr: In dB, against it; None for the unmerged.
        ssim: Against it; None for the unmerged.
        distance: Frechet distance; None of the unmerged pictures from themselves, and of a single sample.
        merged: Share of the tokens, or of the keys, that merging removed, in the mean; None where it was not counted.
    """

    name: str
    family: str
    seconds: float
    speedup: Spread
    psnr: Spread | None
    ssim: Spread | None
    distance: float | None
    merged: float | None

    @classmethod
    def of(cls, name: str, family: str, samples: Sequence[SweptSample], distance: float | None) -> SweptRow:
        """Of at least one sample."""
        merges, merged = name != REFERENCE, [one.merged for one in samples if one.merged is not None]
        return cls(
            name=name,
            family=family,
            seconds=median(one.seconds for one in samples),
            speedup=Spread.of([one.speedup for one in samples]),
            psnr=Spread.of([one.psnr for one in samples]) if merges else None,
            ssim=Spread.of([one.ssim for one in samples]) if merges else None,
            distance=distance,
            merged=mean(merged) if merged else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: value.to_dict() if isinstance(value, Spread) else value for name, value in vars(self).items()}


class SweptRows(NamedTuple):
    """What the pictures say.

    Attributes:
        rows: One for every row of the tables; the unmerged first.
        machines: On which the pictures were drawn.
    """

    rows: tuple[SweptRow, ...]
    machines: tuple[str, ...]


def measure(
    store: Store,
    families: Mapping[str, str],
    takes: Sequence[Take],
    features: Features,
    real: Moments | None,
    progress: bool,
) -> SweptRows:
    """Read every picture once.

    Args:
        store: Where they are.
        families: Those of the rows, by name, the unmerged first.
        takes: Those that all rows have drawn, at least one.
        features: For the Frechet distance.
        real: To what it is measured; None: to the unmerged pictures.
        progress: Whether to show a bar.

    Raises:
        ValueError: If a picture cannot be read.
    """
    samples: dict[str, list[SweptSample]] = defaultdict(list)
    growing = {name: GrowingMoments() for name in families}
    machines: dict[str, None] = {}
    for take in tqdm(takes, unit="take", desc="measuring", disable=not progress):
        unmerged = store.load(REFERENCE, take)
        for name in families:
            picture = unmerged if name == REFERENCE else store.load(name, take)
            samples[name].append(SweptSample.of(picture, unmerged))
            growing[name].add(features.measure(picture.values))
            machines[picture.machine] = None
    moments = {name: one.moments() for name, one in growing.items()}
    goal = real or moments[REFERENCE]
    distances = {name: None if one is goal else _distance(one, goal) for name, one in moments.items()}
    rows = (SweptRow.of(name, family, samples[name], distances[name]) for name, family in families.items())
    return SweptRows(tuple(rows), tuple(machines))


def _distance(one: Moments, other: Moments) -> float | None:
    return one.distance(other) if min(one.size, other.size) > 1 else None
