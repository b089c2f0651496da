"""The cost of matching, merging and unmerging by themselves, beside a lower bound for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from catome_bench.measure.contender import Contender, MakeContender
from catome_bench.measure.race import race
from catome_bench.measure.rows import Row
from catome_bench.races.contenders import CAPACITY_FOR_HALF, fixed_policy
from catome_core import Match, MergePlan, PairCache, TokenGrid, match_tokens, merge, unmerge

SHAPES: Mapping[str, tuple[int, ...]] = {
    "4,096 tokens": (64, 64),
    "16,384 tokens": (128, 128),
    "65,536 tokens": (256, 256),
    "75,600 tokens, 3-D": (21, 60, 60),
}
"""Grids for the windowed match."""

RADIUS = 2
# The lower bound of each operation.
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
        """Call the function."""
        return self.function(*inputs)


def make_operation(function: Callable[..., Any], *inputs: Tensor) -> MakeContender:
    """A function and its arguments, as a contender."""
    return lambda stack: Contender(Operation(function), inputs)


def race_operations(
    grid: TokenGrid, channels: int, batch: int, mode: str, *, repeats: int, device: str, dtype: torch.dtype
) -> list[Row]:
    """Match, plan, merge and unmerge half the tokens; efficiency is the lower bound's time over the operation's."""
    tokens = torch.randn(batch, grid.tokens, channels, device=device, dtype=dtype)
    cache = PairCache(fixed_policy())
    plan = cache(tokens, grid)
    match = cache.match()
    merged = merge(tokens, plan)
    unit = F.normalize(tokens, dim=-1)
    contenders = {
        "product of sources and destinations": make_operation(torch.bmm, *_sides(unit, grid)),
        "match": make_operation(partial(match_tokens, grid=grid), tokens),
        "plan": make_operation(partial(_plan, grid), *match),
        "copy of the tokens": make_operation(torch.clone, tokens),
        "merge": make_operation(partial(merge, plan=plan), tokens),
        "unmerge": make_operation(partial(unmerge, plan=plan), merged),
    }
    return add_floors(race(contenders, mode, repeats=repeats, device=device))


def _plan(grid: TokenGrid, score: Tensor, target: Tensor) -> MergePlan:
    return fixed_policy().plan(Match(score, target), grid, CAPACITY_FOR_HALF)


def _sides(unit: Tensor, grid: TokenGrid) -> tuple[Tensor, Tensor]:
    """A row for each source, and a column for each destination; the values do not matter."""
    return unit[:, : grid.sources].contiguous(), unit[:, : grid.destinations].transpose(1, 2)


def add_floors(rows: list[Row]) -> list[Row]:
    """Set the efficiency, the lower bound's time over the operation's, in place."""
    seconds = {row.subject: row.timing.median for row in rows if row.timing}
    for row in rows:
        floor = seconds.get(FLOORS.get(row.subject, ""))
        if floor is not None and row.timing is not None:
            row.efficiency = floor / row.timing.median
    return rows


def race_windows(
    shapes: Mapping[str, tuple[int, ...]], channels: int, mode: str, *, repeats: int, device: str, dtype: torch.dtype
) -> list[Row]:
    """The windowed match at growing sizes, batch 1: time and memory should grow linearly with the tokens."""
    contenders: dict[str, MakeContender] = {}
    for name, shape in shapes.items():
        tokens = torch.randn(1, prod(shape), channels, device=device, dtype=dtype)
        windowed = partial(match_tokens, grid=TokenGrid(shape), radius=RADIUS)
        contenders[f"radius {RADIUS}, {name}"] = make_operation(windowed, tokens)
    return race(contenders, mode, repeats=repeats, device=device)
