"""The few capacities that a run moves between, so that there are few graphs."""

from __future__ import annotations

from collections.abc import Sequence

from catome_core.grid import TokenGrid

LADDER = (0, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4)


def choose_rung(ladder: Sequence[float], demand: int, grid: TokenGrid) -> float:
    """The smallest capacity of the ladder with room for `demand` sources; room for all sources if there is none.

    Examples:
        >>> choose_rung((0, 1 / 4, 1 / 2), 5, TokenGrid((4, 4)))
        0.5
    """
    enough = [rung for rung in ladder if grid.places(rung) >= demand]
    return min(enough, default=grid.sources / grid.area)
