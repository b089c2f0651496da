"""The median of a measure over pictures or rounds, and how far it can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

import torch

RESAMPLES = 1000


class Spread(NamedTuple):
    """A measure over several pictures or rounds.

    Attributes:
        median: Their median.
        worst: Their 5th percentile: of twenty, one is at most this.
        interval: Where the median of others like them would be, nineteen times of twenty (bootstrap).
    """

    median: float
    worst: float
    interval: tuple[float, float]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value; infinite ones (the PSNR of equal pictures) count as the highest.

        Examples:
            >>> Spread.of([3.0, 1.0, 2.0])
            Spread(median=2.0, worst=1.0, interval=(1.0, 3.0))
        """
        medians = _resampled_medians(values)
        interval = (quantile(medians, 0.025), quantile(medians, 0.975))
        return cls(median(values), quantile(values, 0.05), interval)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: None stands for it."""
        low, high = map(_finite, self.interval)
        return {"median": _finite(self.median), "worst": _finite(self.worst), "interval": [low, high]}


def _resampled_medians(values: Sequence[float]) -> list[float]:
    # Its own generator, with a seed: the same values have the same interval, and nobody else's numbers change.
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    return [median(values[place] for place in draw) for draw in draws.tolist()]


def quantile(values: Sequence[float], share: float) -> float:
    """One of the values, never something between two, of which one may be infinite.

    Examples:
        >>> quantile([3.0, 1.0, 2.0], 0.05)
        1.0
    """
    return sorted(values)[min(len(values) - 1, math.floor(share * len(values)))]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
