"""The near field: how far a query sees every token, and how many keys that makes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, prod
from typing import NamedTuple

import torch

from catome_core import checks
from catome_core.grid import TokenGrid
from catome_core.tiles import Axis

LARGEST_TILE = 16


class KeyPart(NamedTuple):
    """Keys that groups of consecutive tiles share.

    Attributes:
        groups: Number of groups, of equally many tiles each.
        keys: Number of keys that each of them sees.
    """

    groups: int
    keys: int


@dataclass(frozen=True)
class NearField:
    """How far a query sees every token; beyond, it sees one token of each cell, which counts for all of its cell.

    Queries are processed in tiles, blocks of cells, that see the same keys: all tokens of the tile's own cells and of
    those at most `near` cells away, and one token of every other cell. Tokens of no grid see all tokens, and all
    queries see them. So every token counts exactly once, and all tiles have equally many keys: at the border, a tile
    sees further inwards.

    Args:
        grid: The layout, whose prefix tokens are of no grid.
        near: Distance in cells, along every dimension.
        front: Number of tokens in front of the prefix, such as text.
        back: Number of tokens behind the grid.
        tile: Approximate number of tokens along the height and the width of a tile, and a quarter as many frames. Small
            tiles have few keys, large ones are faster to gather. None: 16, or a quarter of a grid that is less than 64
            long.

    Raises:
        TypeError: If a number is not whole, or `grid` is no `TokenGrid`.
        ValueError: If a number is negative, or `tile` is 0.

    Examples:
        >>> field = NearField(TokenGrid((64, 64)), near=1, front=77)
        >>> field.tokens, field.keys
        (4173, 1401)
        >>> NearField(TokenGrid((64, 64), stride=4), near=1, tile=8).keys
        496
    """

    grid: TokenGrid
    near: int = 1
    front: int = 0
    back: int = 0
    tile: int | None = None

    def __post_init__(self) -> None:
        checks.instance("grid", self.grid, TokenGrid, "a TokenGrid")
        for name in ("near", "front", "back"):
            expected = "0 or more cells" if name == "near" else "0 or more tokens"
            object.__setattr__(self, name, checks.integer(name, getattr(self, name), expected, least=0))
        if self.tile is not None:
            object.__setattr__(self, "tile", checks.integer("tile", self.tile, "a positive number of tokens", least=1))

    @property
    def axes(self) -> list[Axis]:
        """The dimensions of the grid, cut into tiles."""
        return list(_cut(self).axes)

    @property
    def tokens(self) -> int:
        """Length of the whole sequence."""
        return self.front + self.grid.tokens + self.back

    @property
    def lead(self) -> int:
        """Number of tokens in front of the grid."""
        return self.front + self.grid.prefix

    @property
    def outside(self) -> int:
        """Number of tokens of no grid."""
        return self.lead + self.back

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return prod([axis.tiles for axis in self.axes])

    @property
    def queries_per_tile(self) -> int:
        """Number of queries that see the same keys."""
        return prod([axis.side * axis.stride for axis in self.axes])

    @property
    def keys(self) -> int:
        """Number of keys that every query of the grid sees."""
        return sum(part.keys for part in self.parts)

    @property
    def parts(self) -> list[KeyPart]:
        """The near keys and, for each dimension that a window does not cover, the far ones beyond along it.

        These are at or past a window's end, inside it along the dimensions that come earlier, and anywhere along those
        that come later: tiles that are alike up to that dimension share them.

        Examples:
            >>> NearField(TokenGrid((64, 64)), near=1, front=77).parts
            [KeyPart(groups=16, keys=477), KeyPart(groups=4, keys=704), KeyPart(groups=16, keys=220)]
        """
        return list(_cut(self).parts)

    @property
    def has_whole_cells(self) -> bool:
        """Whether every cell has equally many tokens."""
        return all(axis.length % axis.stride == 0 for axis in self.axes)

    @property
    def covers_grid(self) -> bool:
        """Whether every query sees every token."""
        return all(axis.window == axis.cells for axis in self.axes)


class _Cut(NamedTuple):
    """A field's axes and parts."""

    axes: tuple[Axis, ...]
    parts: tuple[KeyPart, ...]


def _cut(field: NearField) -> _Cut:
    """Worked out in compiled code, where it is done once, else kept from call to call."""
    return _work_out(field) if torch.compiler.is_compiling() else _kept(field)


def _work_out(field: NearField) -> _Cut:
    grid, tile = field.grid, field.tile or max(1, min(LARGEST_TILE, max(field.grid.shape[-2:]) // 4))
    sides = [max(1, tile // 4), tile, tile][-len(grid.shape) :]
    lengths = zip(grid.shape, grid.strides, sides, strict=True)
    axes = [Axis.cut(length, stride, _even(length, stride, side), field.near) for length, stride, side in lengths]
    near = prod([min(axis.window * axis.stride, axis.length) for axis in axes])
    parts = [KeyPart(prod([axis.tiles for axis in axes]), field.outside + near)]
    for number, axis in enumerate(axes):
        if axis.window < axis.cells:
            before, after = axes[:number], axes[number + 1 :]
            past = axis.cells - axis.window
            keys = prod([one.window for one in before]) * past * prod([one.cells for one in after])
            parts.append(KeyPart(prod([one.tiles for one in (*before, axis)]), keys))
    return _Cut(tuple(axes), tuple(parts))


_kept = lru_cache(maxsize=64)(_work_out)


def _even(length: int, stride: int, side: int) -> int:
    """Cells per tile of at most `side` tokens, or of one cell, such that tiles are about equally large."""
    cells = ceil(length / stride)
    return ceil(cells / ceil(cells / max(1, side // stride)))
