"""The grid cut into tiles: blocks of cells, each with the window of cells around it."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from catome_core.grid import Coordinates, TokenGrid, ravel, unravel

if TYPE_CHECKING:
    from jaxtyping import Int


@dataclass(frozen=True)
class Axis:
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

    def window_tokens_of(self, tile: Int[Tensor, "tiles"]) -> Int[Tensor, "tiles tokens"]:
        """Positions of all tokens of the cells around every tile; past the border where the last cell is partial."""
        inner = torch.arange(min(self.window * self.stride, self.length), device=tile.device)
        return self.window_of(tile)[:, :1] * self.stride + inner

    def window_of(self, tile: Int[Tensor, "tiles"]) -> Int[Tensor, "tiles window"]:
        """The cells around every tile."""
        first = (self.first_cell(tile) - self.radius).clamp(0, self.cells - self.window)
        return first[:, None] + torch.arange(self.window, device=tile.device)


def cross(parts: list[Tensor]) -> Coordinates:
    """From (tiles, members) along each dimension to coordinates (tiles, members) of the product of all dimensions."""
    tiles, members = [len(part) for part in parts], [part.shape[1] for part in parts]
    indices = (unravel(sizes, torch.arange(prod(sizes), device=parts[0].device)) for sizes in (tiles, members))
    return tuple(part[tile[:, None], member] for part, tile, member in zip(parts, *indices, strict=True))


def index_in_tiles(grid: TokenGrid, axes: list[Axis], positions: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """Index of grid positions among the tokens of all tiles."""
    tiles: list[Tensor] = []
    inner: list[Tensor] = []
    for axis, position in zip(axes, unravel(grid.shape, positions), strict=True):
        tile = position // axis.stride // axis.side
        tiles.append(tile)
        inner.append(position - axis.first_cell(tile) * axis.stride)
    members = [axis.side * axis.stride for axis in axes]
    return ravel([axis.tiles for axis in axes], tiles) * prod(members) + ravel(members, inner)
