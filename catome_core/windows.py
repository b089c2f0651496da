"""The best destination within a window: products of small tiles of the grid with the cells around them."""

from __future__ import annotations

from math import ceil, prod
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from catome_core.grid import Coordinates, TokenGrid, ravel, unravel
from catome_core.similarity import UnitRows, cosines

if TYPE_CHECKING:
    from jaxtyping import Float32, Int

# Cells along each side of a tile, by the number of dimensions: large products, and windows not much larger than a tile.
TILE_CELLS = {2: 8, 3: 4}


class Axis(NamedTuple):
    """One dimension of the grid, cut into tiles; at the border a tile and its window are shifted inwards as a whole.

    Attributes:
        length: Tokens along the dimension.
        stride: Tokens per cell.
        cells: Cells along the dimension.
        side: Cells per tile.
        window: Cells that a tile is compared with.
        radius: Distance in cells that is still within reach.
    """

    length: int
    stride: int
    cells: int
    side: int
    window: int
    radius: int

    @classmethod
    def cut(cls, length: int, stride: int, side: int, radius: int) -> Axis:
        """Tiles of at most `side` cells, each with the cells that are within `radius` of it."""
        cells = ceil(length / stride)
        return cls(length, stride, cells, min(side, cells), min(side + 2 * radius, cells), radius)

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return ceil(self.cells / self.side)

    def first_cell(self, tile: Int[Tensor, "tiles"]) -> Int[Tensor, "tiles"]:
        """The first cell of every tile."""
        return (tile * self.side).clamp_max(self.cells - self.side)

    def tokens_of(self, tile: Int[Tensor, "tiles"]) -> Int[Tensor, "tiles members"]:
        """Positions of every tile's side * stride tokens; past the border the last token is repeated."""
        inner = torch.arange(self.side * self.stride, device=tile.device)
        return (self.first_cell(tile)[:, None] * self.stride + inner).clamp_max(self.length - 1)

    def window_of(self, tile: Int[Tensor, "tiles"]) -> Int[Tensor, "tiles window"]:
        """The cells around every tile."""
        first = (self.first_cell(tile) - self.radius).clamp(0, self.cells - self.window)
        return first[:, None] + torch.arange(self.window, device=tile.device)


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
    tokens = _cross([axis.tokens_of(tile) for axis, tile in zip(axes, numbers, strict=True)])
    window = _cross([axis.window_of(tile) for axis, tile in zip(axes, numbers, strict=True)])
    chunks = zip(*(part.split(_tiles_per_chunk(rows, axes)) for part in (*tokens, *window)), strict=True)
    tiles = [Tiles(chunk[: len(axes)], chunk[len(axes) :]) for chunk in chunks]
    best = [_best_in_windows(rows, grid, tile, destinations, radius, shared) for tile in tiles]
    index = _index_in_tiles(grid, axes, sources)
    score, target = (torch.cat(parts, 1).flatten(1)[:, index] for parts in zip(*best, strict=True))
    return score, target


def _best_in_windows(
    rows: UnitRows, grid: TokenGrid, tiles: Tiles, destinations: Tensor, radius: int, shared: bool
) -> tuple[Tensor, Tensor]:
    """Score and target (plans, tiles, members) for every token of the tiles."""
    cells = ravel(grid.cells, tiles.window)
    similarity = cosines(rows(ravel(grid.shape, tiles.tokens)), rows(destinations[cells]), shared)
    for token, cell, stride in zip(tiles.tokens, tiles.window, grid.strides, strict=True):
        far = (token[:, :, None] // stride - cell[:, None]).abs() > radius
        similarity = similarity.masked_fill(far, -torch.inf)
    score, index = similarity.max(-1)
    return score, cells.expand(len(score), -1, -1).gather(2, index)


def _cross(parts: list[Tensor]) -> Coordinates:
    """From (tiles, members) along each dimension to coordinates (tiles, members) of the product of all dimensions."""
    tiles, members = [len(part) for part in parts], [part.shape[1] for part in parts]
    indices = (unravel(sizes, torch.arange(prod(sizes), device=parts[0].device)) for sizes in (tiles, members))
    return tuple(part[tile[:, None], member] for part, tile, member in zip(parts, *indices, strict=True))


def _index_in_tiles(grid: TokenGrid, axes: list[Axis], positions: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """Index of grid positions among the tokens of all tiles."""
    tiles: list[Tensor] = []
    inner: list[Tensor] = []
    for axis, position in zip(axes, unravel(grid.shape, positions), strict=True):
        tile = position // axis.stride // axis.side
        tiles.append(tile)
        inner.append(position - axis.first_cell(tile) * axis.stride)
    members = [axis.side * axis.stride for axis in axes]
    return ravel([axis.tiles for axis in axes], tiles) * prod(members) + ravel(members, inner)


def _tiles_per_chunk(rows: UnitRows, axes: list[Axis]) -> int:
    """Number of tiles whose rows and cosines make up a chunk."""
    batch, _, channels = rows.tokens.shape
    tokens, window = prod([axis.side * axis.stride for axis in axes]), prod([axis.window for axis in axes])
    # Distances are int64: two float32 numbers each.
    elements = batch * channels * (tokens + window) + (batch + 2) * tokens * window
    return max(1, rows.max_elements // elements)
