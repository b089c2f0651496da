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
        worst: Their 5th percentile: of twenty, one is below it.
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

    @classmethod
    def of_distances(cls, values: Sequence[float]) -> Spread:
        """The spread of values of which the highest is the worst.

        Examples:
            >>> Spread.of_distances([3.0, 1.0, 2.0])
            Spread(median=2.0, worst=3.0, interval=(1.0, 3.0))
        """
        middle, worst, (low, high) = cls.of([-value for value in values])
        return cls(-middle, -worst, (-high, -low))

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: None stands for it."""
        low, high = map(for_json, self.interval)
        return {"median": for_json(self.median), "worst": for_json(self.worst), "interval": [low, high]}


def _resampled_medians(values: Sequence[float]) -> list[float]:
    # Its own generator, with a seed: the same values have the same interval, and nobody else's numbers change.
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    return [median(values[index] for index in draw) for draw in draws.tolist()]


def quantile(values: Sequence[float], share: float) -> float:
    """One of the values, never something between two, of which one may be infinite.

    Examples:
        >>> quantile([3.0, 1.0, 2.0], 0.05)
        1.0
    """
    return sorted(values)[min(len(values) - 1, math.floor(share * len(values)))]


def for_json(value: float) -> float | None:
    """The value; None for infinity, the PSNR of equal pictures.

    Raises:
        ValueError: If it is NaN, which means that a picture was not finite.

    Examples:
        >>> for_json(40.0), for_json(math.inf)
        (40.0, None)
    """
    if math.isnan(value):
        raise ValueError("a measure is NaN; expected pictures whose values are finite: draw in another dtype")
    return None if math.isinf(value) else value
