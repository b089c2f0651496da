"""The order in which the tokens of a cell have their turn: as in dithering, so that errors of many turns cancel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from catome_core import checks
from catome_core.constants import constant_when_compiled
from catome_core.grid import TokenGrid, unravel

if TYPE_CHECKING:
    from jaxtyping import Int


def dither_offsets(
    grid: TokenGrid, step: Int[Tensor, "*steps"] | int = 0, *, device: torch.device | str | None = None
) -> Int[Tensor, "*steps destinations"]:
    """The offsets of a moving lattice at a step, for `lattice_plan` and `choose_destinations`.

    From step to step, and from each cell to the next along every dimension, the anchor moves on in `dither_order`. So
    a token of a full cell is an anchor once in as many steps as the cell has tokens, and in no step are the anchors a
    regular pattern, whose errors would add up to one that can be seen.

    Args:
        grid: The layout.
        step: From 0; a number, or a tensor (int64) with a single one. Several steps at once are (steps, 1).
        device: Of the result; by default that of `step`.

    Returns:
        One offset (int64) per cell, for every step.

    Raises:
        TypeError: If the step is not a whole number.

    Examples:
        >>> dither_offsets(TokenGrid((2, 8))).tolist(), dither_offsets(TokenGrid((2, 8)), 1).tolist()
        ([0, 3, 1, 2], [3, 1, 2, 0])
    """
    if isinstance(step, Tensor):
        device = step.device if device is None else device
    elif not torch.compiler.is_compiling():
        step = checks.integer("step", step, "the number of a step, from 0")
    cells = unravel(grid.cells, torch.arange(grid.destinations, device=device))
    turns = (torch.stack(cells).sum(0) + step) % prod(grid.strides)
    # By Python numbers, since a tensor made of them would be copied to the device at every call.
    offsets = torch.zeros_like(turns)
    for turn, offset in enumerate(dither_order(grid.strides)):
        offsets = offsets + offset * (turns == turn)
    return offsets


@constant_when_compiled
def dither_order(strides: tuple[int, ...]) -> tuple[int, ...]:
    """The tokens of a cell, as raster indices in it, each as far as possible from all before it, as on a torus.

    Examples:
        >>> dither_order((2, 2))
        (0, 3, 1, 2)
        >>> dither_order((2, 4))
        (0, 6, 2, 4, 1, 7, 3, 5)
    """
    return _farthest_first(strides)


# Not above: a compiler looks through a cache, and warns.
@lru_cache
def _farthest_first(strides: tuple[int, ...]) -> tuple[int, ...]:
    members = list(product(*map(range, strides)))
    order, left = [0], {member: (float("inf"), 0.0) for member in members[1:]}
    while left:
        last = members[order[-1]]
        for member, (nearest, crowd) in left.items():
            distance = _distance(member, last, strides)
            # Of equally far ones, that with the most room around it.
            left[member] = min(nearest, distance), crowd - 1 / distance
        farthest = max(left, key=lambda member: left[member])
        del left[farthest]
        order.append(members.index(farthest))
    return tuple(order)


def _distance(a: Sequence[int], b: Sequence[int], lengths: Sequence[int]) -> float:
    """Squared, on a torus."""
    return float(sum(min((x - y) % n, (y - x) % n) ** 2 for x, y, n in zip(a, b, lengths, strict=True)))
