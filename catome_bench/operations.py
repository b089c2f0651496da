"""What matching, merging and unmerging cost by themselves, beside the least that they could."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from catome_bench.comparing import Row
from catome_bench.contenders import ALWAYS, HALF, Contender, Entrant, fixed_policy
from catome_bench.race import race
from catome_core import PairCache, TokenGrid, match_tokens, merge, unmerge

SHAPES: Mapping[str, tuple[int, ...]] = {
    "4,096 tokens": (64, 64),
    "16,384 tokens": (128, 128),
    "65,536 tokens": (256, 256),
    "75,600 tokens, 3-D": (21, 60, 60),
}
"""Grids for the windowed match."""

RADIUS = 2
# What an operation is measured against.
FLOORS = {
    "match": "product of sources and destinations",
    "merge": "copy of the tokens",
    "unmerge": "copy of the tokens",
}


class Operation(nn.Module):
    """A function of tensors as a module, so that it can take part in a race."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        """Call it."""
        return self.function(*inputs)


def enter(function: Callable[..., Any], *inputs: Tensor) -> Entrant:
    """A function and its arguments, for a race."""
    return lambda stack: Contender(Operation(function), inputs, ALWAYS)


def race_operations(
    grid: TokenGrid, channels: int, batch: int, mode: str, *, repeats: int, device: str, dtype: torch.dtype
) -> list[Row]:
    """Match, plan, merge and unmerge of half the tokens; efficiency is the floor's time over the operation's."""
    tokens = torch.randn(batch, grid.tokens, channels, device=device, dtype=dtype)
    cache = PairCache(fixed_policy())
    plan = cache(tokens, grid)
    match = cache.match()
    merged = merge(tokens, plan)
    unit = F.normalize(tokens, dim=-1)
    entrants = {
        "product of sources and destinations": enter(torch.bmm, *_sides(unit, grid)),
        "match": enter(partial(match_tokens, grid=grid), tokens),
        "plan": enter(lambda score, target: fixed_policy().plan(type(match)(score, target), grid, HALF), *match),
        "copy of the tokens": enter(torch.clone, tokens),
        "merge": enter(partial(_with_plan, merge, plan), tokens),
        "unmerge": enter(partial(_with_plan, unmerge, plan), merged),
    }
    return against_floors(race(entrants, mode, repeats=repeats, device=device))


def _sides(unit: Tensor, grid: TokenGrid) -> tuple[Tensor, Tensor]:
    """As many rows as there are sources, and the columns of as many destinations: values do not matter."""
    return unit[:, : grid.sources].contiguous(), unit[:, : grid.destinations].transpose(1, 2)


def _with_plan(operation: Callable[..., Tensor], plan: Any, values: Tensor) -> Tensor:
    return operation(values, plan)


def against_floors(rows: list[Row]) -> list[Row]:
    """Set efficiency = floor / operation."""
    seconds = {row.subject: row.timing.median for row in rows if row.timing}
    for row in rows:
        floor = seconds.get(FLOORS.get(row.subject, ""))
        if floor is not None and row.timing is not None:
            row.efficiency = floor / row.timing.median
    return rows


def race_windows(
    shapes: Mapping[str, tuple[int, ...]], channels: int, mode: str, *, repeats: int, device: str, dtype: torch.dtype
) -> list[Row]:
    """The windowed match at growing sizes, batch 1: time and memory should grow with the tokens."""
    entrants = {}
    for name, shape in shapes.items():
        tokens = torch.randn(1, prod(shape), channels, device=device, dtype=dtype)
        windowed = partial(match_tokens, grid=TokenGrid(shape), radius=RADIUS)
        entrants[f"radius {RADIUS}, {name}"] = enter(windowed, tokens)
    return race(entrants, mode, repeats=repeats, device=device)
