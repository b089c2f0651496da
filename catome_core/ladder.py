"""The few capacities that a run moves between, so that there are few graphs."""

from __future__ import annotations

from collections.abc import Sequence

from catome_core.grid import TokenGrid

# Attention kernels work on tiles: a length that they divide wastes nothing.
MULTIPLE = 8

LADDER = (0, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4)


def choose_rung(ladder: Sequence[float], demand: int, grid: TokenGrid) -> float:
    """The smallest rung with room for `demand` sources, raised until the number of slots is a multiple of 8.

    Room for all sources if no rung is large enough.

    Examples:
        >>> choose_rung((0, 1 / 4, 1 / 2), 5, TokenGrid((4, 4)))
        0.75
        >>> choose_rung((0, 1 / 4, 1 / 2), 5, TokenGrid((8, 8)))
        0.25
    """
    enough = [raised for raised in (_raise(rung, grid) for rung in ladder) if raised >= demand]
    return min(enough, default=grid.sources) / grid.area


def _raise(rung: float, grid: TokenGrid) -> int:
    return min(grid.sources, grid.places(rung) + -grid.slots(rung) % MULTIPLE)
