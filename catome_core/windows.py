"""The best destination within a window: products of small tiles of the grid with the cells around them."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from catome_core.grid import Coordinates, TokenGrid, ravel
from catome_core.similarity import UnitRows, cosines
from catome_core.tiles import Axis, cross, index_in_tiles

if TYPE_CHECKING:
    from jaxtyping import Float32, Int

# Cells along each side of a tile, by the number of dimensions: large products, and windows not much larger than a tile.
TILE_CELLS = {2: 8, 3: 4}


class Tiles(NamedTuple):
    """Tokens and windows of all tiles: per dimension int64 (tiles, members)."""

    tokens: Coordinates
    window: Coordinates


def match_in_windows(
    rows: UnitRows,
    grid: TokenGrid,
    sources: Int[Tensor, "sources"],
    destinations: Int[Tensor, "destinations"],
    radius: int,
    shared: bool,
) -> tuple[Float32[Tensor, "plans sources"], Int[Tensor, "plans sources"]]:
    """Score and target of the best destination at most `radius` cells away; time is linear in the tokens."""
    side = TILE_CELLS[len(grid.shape)] if radius else 1
    axes = [Axis.cut(length, stride, side, radius) for length, stride in zip(grid.shape, grid.strides, strict=True)]
    numbers = [torch.arange(axis.tiles, device=sources.device) for axis in axes]
    tokens = cross([axis.tokens_of(tile) for axis, tile in zip(axes, numbers, strict=True)])
    window = cross([axis.window_of(tile) for axis, tile in zip(axes, numbers, strict=True)])
    chunks = zip(*(part.split(_tiles_per_chunk(rows, axes)) for part in (*tokens, *window)), strict=True)
    tiles = [Tiles(chunk[: len(axes)], chunk[len(axes) :]) for chunk in chunks]
    best = [_best_in_windows(rows, grid, tile, destinations, radius, shared) for tile in tiles]
    index = index_in_tiles(grid, axes, sources)
    score, target = (torch.cat(parts, 1).flatten(1)[:, index] for parts in zip(*best, strict=True))
    return score, target


def _best_in_windows(
    rows: UnitRows, grid: TokenGrid, tiles: Tiles, destinations: Tensor, radius: int, shared: bool
) -> tuple[Tensor, Tensor]:
    """Score and target (plans, tiles, members) for every token of the tiles."""
    cells = ravel(grid.cells, tiles.window)
    similarity = cosines(rows.unit(ravel(grid.shape, tiles.tokens)), rows.unit(destinations[cells]), shared)
    for token, cell, stride in zip(tiles.tokens, tiles.window, grid.strides, strict=True):
        far = (token[:, :, None] // stride - cell[:, None]).abs() > radius
        similarity = similarity.masked_fill(far, -torch.inf)
    score, index = similarity.max(-1)
    return score, cells.expand(len(score), -1, -1).gather(2, index)


def _tiles_per_chunk(rows: UnitRows, axes: list[Axis]) -> int:
    """Number of tiles whose rows and cosines make up a chunk."""
    batch, _, channels = rows.tokens.shape
    tokens, window = prod([axis.side * axis.stride for axis in axes]), prod([axis.window for axis in axes])
    # Distances are int64: two float32 numbers each.
    elements = batch * channels * (tokens + window) + (batch + 2) * tokens * window
    return max(1, rows.max_elements // elements)
