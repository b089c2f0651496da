"""The best destination within a window: products of small tiles of the grid with the cells around them."""

from __future__ import annotations

from math import ceil, prod
from typing import NamedTuple

import torch
from torch import Tensor

from catome_core import similarity
from catome_core.grid import Coordinates, TokenGrid, flatten, unflatten
from catome_core.similarity import UnitRows, compare

# Cells along each side of a tile, in 2-D and 3-D: large products, and windows that are not much larger than their tile.
SIDE = {2: 8, 3: 4}


class Axis(NamedTuple):
    """One dimension of the grid, cut into tiles; at the border a tile, and its window, are moved inwards as a whole."""

    length: int
    step: int
    cells: int
    side: int
    window: int
    radius: int

    @classmethod
    def cut(cls, length: int, step: int, side: int, radius: int) -> Axis:
        """Tiles of at most `side` cells, each with the cells that are within `radius` of it."""
        cells = ceil(length / step)
        return cls(length, step, cells, min(side, cells), min(side + 2 * radius, cells), radius)

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return ceil(self.cells / self.side)

    def first_cell(self, tile: Tensor) -> Tensor:
        """Where a tile begins."""
        return (tile * self.side).clamp_max(self.cells - self.side)

    def tokens_of(self, tile: Tensor) -> Tensor:
        """Positions (tiles, side * step) of a tile's tokens; beyond the border the last one is repeated."""
        inner = torch.arange(self.side * self.step, device=tile.device)
        return (self.first_cell(tile)[:, None] * self.step + inner).clamp_max(self.length - 1)

    def window_of(self, tile: Tensor) -> Tensor:
        """Cells (tiles, window) around a tile."""
        first = (self.first_cell(tile) - self.radius).clamp(0, self.cells - self.window)
        return first[:, None] + torch.arange(self.window, device=tile.device)


class Tiles(NamedTuple):
    """Tokens and windows of all tiles: per dimension int64 (tiles, members)."""

    tokens: Coordinates
    window: Coordinates


def match_nearby(
    rows: UnitRows, grid: TokenGrid, sources: Tensor, destinations: Tensor, radius: int, shared: bool
) -> tuple[Tensor, Tensor]:
    """Score and target (batch, sources) of the best destination at most `radius` cells away; linear in the tokens."""
    side = SIDE[len(grid.shape)] if radius else 1
    axes = [Axis.cut(length, step, side, radius) for length, step in zip(grid.shape, grid.steps, strict=True)]
    every = [torch.arange(axis.tiles, device=sources.device) for axis in axes]
    tokens = _outer([axis.tokens_of(tile) for axis, tile in zip(axes, every, strict=True)])
    window = _outer([axis.window_of(tile) for axis, tile in zip(axes, every, strict=True)])
    pieces = zip(*(part.split(_at_once(rows, axes)) for part in (*tokens, *window)), strict=True)
    tiles = [Tiles(piece[: len(axes)], piece[len(axes) :]) for piece in pieces]
    best = [_best_in_windows(rows, grid, tile, destinations, radius, shared) for tile in tiles]
    place = _places(grid, axes, sources)
    score, target = (torch.cat(parts, 1).flatten(1)[:, place] for parts in zip(*best, strict=True))
    return score, target


def _best_in_windows(
    rows: UnitRows, grid: TokenGrid, tiles: Tiles, destinations: Tensor, radius: int, shared: bool
) -> tuple[Tensor, Tensor]:
    cells = flatten(grid.cells, tiles.window)
    cosines = compare(rows(flatten(grid.shape, tiles.tokens)), rows(destinations[cells]), shared)
    for token, cell, step in zip(tiles.tokens, tiles.window, grid.steps, strict=True):
        far = (token[:, :, None] // step - cell[:, None]).abs() > radius
        cosines = cosines.masked_fill(far, -torch.inf)
    score, index = cosines.max(-1)
    return score, cells.expand(len(score), -1, -1).gather(2, index)


def _outer(parts: list[Tensor]) -> Coordinates:
    """From (tiles, members) along each dimension to coordinates (tiles, members) of the product of all dimensions."""
    tiles, members = [len(part) for part in parts], [part.shape[1] for part in parts]
    every = (unflatten(tuple(sizes), torch.arange(prod(sizes), device=parts[0].device)) for sizes in (tiles, members))
    return tuple(part[tile[:, None], member] for part, tile, member in zip(parts, *every, strict=True))


def _places(grid: TokenGrid, axes: list[Axis], positions: Tensor) -> Tensor:
    """Where grid positions (n,) are among the tokens of all tiles."""
    tiles, inner = [], []
    for axis, position in zip(axes, unflatten(grid.shape, positions), strict=True):
        tiles.append(position // axis.step // axis.side)
        inner.append(position - axis.first_cell(tiles[-1]) * axis.step)
    members = tuple(axis.side * axis.step for axis in axes)
    return flatten(tuple(axis.tiles for axis in axes), tuple(tiles)) * prod(members) + flatten(members, tuple(inner))


def _at_once(rows: UnitRows, axes: list[Axis]) -> int:
    """Tiles whose rows and cosines make up a piece."""
    batch, _, channels = rows.tokens.shape
    tokens, window = prod([axis.side * axis.step for axis in axes]), prod([axis.window for axis in axes])
    # Distances are int64: two numbers each.
    numbers = batch * channels * (tokens + window) + (batch + 2) * tokens * window
    return max(1, similarity.CHUNK // numbers)
