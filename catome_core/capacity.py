"""The few capacities that a run moves between, so that there are few graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from catome_core import checks
from catome_core.grid import TokenGrid
from catome_core.matching import Match
from catome_core.planning import count_unmergeable
from catome_core.storage import PlanKey

if TYPE_CHECKING:
    from jaxtyping import Int

# Attention kernels work on tiles: a number of slots that they divide wastes nothing.
SLOT_MULTIPLE = 8

LADDER = (0, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4)
"""The capacities that `PairCache.fit` chooses from."""


def choose_rung(ladder: Sequence[float], demand: int, grid: TokenGrid) -> float:
    """The smallest rung with at least `demand` kept slots, raised until the number of slots is a multiple of 8.

    A kept slot for every source if no rung is large enough.

    Examples:
        >>> choose_rung((0, 1 / 4, 1 / 2), 5, TokenGrid((4, 4)))
        0.75
        >>> choose_rung((0, 1 / 4, 1 / 2), 5, TokenGrid((8, 8)))
        0.25
    """
    enough = [raised for raised in (_raise(rung, grid) for rung in ladder) if raised >= demand]
    return min(enough, default=grid.sources) / grid.area


def _raise(rung: float, grid: TokenGrid) -> int:
    return min(grid.sources, grid.kept(rung) + -grid.slots(rung) % SLOT_MULTIPLE)


def count_demand(match: Match, threshold: float) -> Int[Tensor, ""]:
    """Number of kept slots at which no sample of the match overflows: int64, on the device; 0 for no samples."""
    return pad(count_unmergeable(match, threshold), (0, 1)).amax()


class FittedCache(Protocol):
    """A cache whose plan can be rebuilt for another capacity, such as `PairCache`."""

    key: PlanKey | None

    def demand(self) -> Tensor:
        """Number of kept slots (int64, 0-d) at which nothing overflows."""
        ...

    def set_capacity(self, capacity: float | None) -> None:
        """Rebuild the plan at this capacity."""
        ...


def fit_capacity(caches: Sequence[FittedCache], ladder: Sequence[float] = LADDER) -> dict[TokenGrid, float]:
    """Choose one capacity for all caches of a grid, so that they share their graphs, and rebuild their plans for it.

    The tokens are not needed. Reads once from the device, which must be the same for all. Not for compiled code.

    Returns:
        By grid, the smallest rung of `ladder` at which no sample overflows, raised until the number of slots is a
        multiple of 8; without one, room for every source.

    Raises:
        TypeError: If `ladder` is not a sequence of numbers.
        ValueError: If one is not from 0 to 1.
        RuntimeError: If a cache holds no plan.

    Examples:
        >>> from catome_core import AdaptiveMerge, PairCache
        >>> caches = [PairCache(AdaptiveMerge(threshold=0.5)) for _ in range(2)]
        >>> plans = [cache(torch.ones(1, 64, 8), TokenGrid((8, 8))) for cache in caches]
        >>> list(fit_capacity(caches, ladder=(0, 1 / 2)).values())
        [0.0]
    """
    expected = "fractions of the tokens from 0 to 1, such as (0, 0.25, 0.5)"
    ladder = checks.numbers("ladder", ladder, expected, least=0, most=1)
    if not caches:
        return {}
    read: list[int] = torch.stack([cache.demand() for cache in caches]).tolist()
    grids = [cache.key.grid for cache in caches if cache.key is not None]
    demands = dict.fromkeys(grids, 0)
    for grid, demand in zip(grids, read, strict=True):
        demands[grid] = max(demand, demands[grid])
    capacities = {grid: choose_rung(ladder, demand, grid) for grid, demand in demands.items()}
    for grid, cache in zip(grids, caches, strict=True):
        cache.set_capacity(capacities[grid])
    return capacities
