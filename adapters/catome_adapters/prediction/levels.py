"""Which levels of a model gain from merging."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import NamedTuple

from catome_adapters.prediction.seconds import predict_site, typical_grid
from catome_adapters.recipes.parts import weighted_parts
from catome_adapters.recipes.recipe import MergeRecipe
from catome_adapters.sites.site import MergeSite

MIN_SHARE_OF_BEST = 1 / 4
"""Merging costs fidelity at every level: one that gains less than this share of the best level's gain is left out."""


class LevelGain(NamedTuple):
    """Seconds that all sites of a level together save and cost in one call of the network."""

    saved: float
    overhead: float

    @property
    def gain(self) -> float:
        """Seconds that merging gains; negative if it loses."""
        return self.saved - self.overhead

    def __str__(self) -> str:
        return f"saves {self.saved * 1e3:.2f} ms, costs {self.overhead * 1e3:.2f} ms"


def predict_levels(sites: Iterable[MergeSite], recipe: MergeRecipe, device_type: str = "") -> dict[int, LevelGain]:
    """What each level would save and cost in compiled code at the model's default size; empty if it has none.

    Where cells change in the run, the mean over the steps that merge. Calls in eager code, in which the host costs
    more, decide for themselves.
    """
    parts = weighted_parts(recipe)
    sums: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for site, (one, share) in product(sites, parts):
        grid = typical_grid(site, one)
        if grid is None:
            return {}
        prediction = predict_site(site, one, grid, device_type=device_type, compiled=True)
        sums[site.level][0] += prediction.saved * share
        sums[site.level][1] += prediction.overhead * share
    return {level: LevelGain(*sums[level]) for level in sorted(sums)}


def winning_levels(gains: Mapping[int, LevelGain], minimum: float = 0.0) -> list[int]:
    """The levels that gain, and at least a quarter of what the best one gains; none if all gain less than `minimum`.

    Examples:
        >>> winning_levels({1: LevelGain(2.0, 1.0), 2: LevelGain(0.5, 0.1), 4: LevelGain(0.2, 0.1)})
        [1, 2]
        >>> winning_levels({1: LevelGain(1.0, 2.0)})
        []
        >>> winning_levels({1: LevelGain(2.0, 1.0), 2: LevelGain(0.5, 0.1)}, minimum=1.5)
        []
    """
    enough = MIN_SHARE_OF_BEST * max((level.gain for level in gains.values()), default=0)
    winning = {level: change.gain for level, change in gains.items() if change.gain > 0 and change.gain >= enough}
    return list(winning) if sum(winning.values()) >= minimum else []


def choose_levels(
    sites: Sequence[MergeSite], levels: str | Sequence[int], gains: Mapping[int, LevelGain], minimum: float
) -> list[int]:
    """The levels that a recipe's `levels` stands for; `gains` and `minimum` decide about "auto".

    Raises:
        ValueError: If the model has none of them, or not all.
    """
    known = sorted({site.level for site in sites})
    named = {"auto": attached_levels(sites, gains, minimum), "top": known[:1], "all": known}
    chosen = named[levels] if isinstance(levels, str) else levels
    if not chosen or set(chosen) - set(known):
        raise ValueError(f"levels is {levels!r}; this model has self-attention at levels {known} (factors)")
    return list(chosen)


def attached_levels(sites: Sequence[MergeSite], gains: Mapping[int, LevelGain], minimum: float = 0.0) -> list[int]:
    """The levels of `levels="auto"`: the winning ones, else the one with the most tokens."""
    return winning_levels(gains, minimum) or [min(site.level for site in sites)]
