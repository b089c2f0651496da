"""The layout of tokens: the grid, its cells, and the destination of each cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, prod
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from catome_core import checks

if TYPE_CHECKING:
    from jaxtyping import Int

Coordinates = tuple[Tensor, ...]
Destination = Literal["top-left", "random", "rotate"]

SHAPE = "positive (height, width) or (frames, height, width)"
OFFSETS = "a whole number, or one for each cell"
STRIDE = "a positive number, or one for each dimension of the grid"


@dataclass(frozen=True)
class TokenGrid:
    """The layout of a token sequence: prefix tokens, then a 2-D or 3-D grid in raster order.

    The grid is cut into cells of `stride`; each cell has one *destination*, all its other tokens are *sources*
    (paper, III-A). A partial cell at the border is a cell of its own.

    Args:
        shape: Grid size, (height, width) or (frames, height, width).
        stride: Cell size, one number or one per dimension.
        prefix: Tokens in front of the grid (class, register or text tokens) that are never merged.

    Attributes:
        tokens: Length of the whole sequence, prefix included.

    Raises:
        TypeError: If a size is not a whole number.
        ValueError: If a number is not positive, `prefix` is negative, or the dimensions do not fit.

    Examples:
        >>> grid = TokenGrid((4, 6), prefix=1)
        >>> grid.tokens, grid.destinations, grid.sources
        (25, 6, 18)
    """

    shape: tuple[int, ...]
    stride: int | tuple[int, ...] = 2
    prefix: int = 0
    tokens: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        shape = checks.integers("shape", self.shape, SHAPE, least=1, lengths=(2, 3))
        if isinstance(self.stride, Sequence):
            stride = checks.integers("stride", self.stride, STRIDE, least=1, lengths=(len(shape),))
        else:
            stride = (checks.integer("stride", self.stride, STRIDE, least=1),) * len(shape)
        prefix = checks.integer("prefix", self.prefix, "0 or the number of tokens in front of the grid", least=0)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "stride", stride)
        object.__setattr__(self, "prefix", prefix)
        object.__setattr__(self, "tokens", prefix + prod(shape))

    @property
    def cells(self) -> tuple[int, ...]:
        """Number of cells along each dimension."""
        return tuple(ceil(length / stride) for length, stride in zip(self.shape, self.strides, strict=True))

    @property
    def strides(self) -> tuple[int, ...]:
        """Cell size along each dimension: `stride`, always as a tuple."""
        assert isinstance(self.stride, tuple)
        return self.stride

    @property
    def area(self) -> int:
        """Tokens of the grid itself, prefix aside."""
        return prod(self.shape)

    @property
    def destinations(self) -> int:
        """Number of destinations: one per cell."""
        return prod(self.cells)

    @property
    def sources(self) -> int:
        """Number of sources: the grid's tokens that are not destinations."""
        return self.area - self.destinations

    def kept(self, capacity: float | None) -> int:
        """Number of kept slots: `capacity` as a fraction of the grid's tokens, rounded up, at most one per source."""
        if capacity is None:
            return self.sources
        # 0.55 * 100 is 55.000000000000007 in floats, and means 55.
        return min(self.sources, ceil(round(capacity * self.area, 6)))

    def slots(self, capacity: float | None) -> int:
        """Length of the merged sequence at a capacity: prefix, destinations and kept slots."""
        return self.prefix + self.destinations + self.kept(capacity)


def choose_destinations(
    grid: TokenGrid,
    offsets: Int[Tensor, "*steps destinations"] | int = 0,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Int[Tensor, "*steps destinations"]:
    """Choose the destination of every cell.

    Args:
        grid: The layout.
        offsets: Which token of its cell, counted in raster order within the cell: one number for all cells, or one per
            cell (int64). Taken modulo the cell's number of tokens, so partial cells are safe. 0 is the top-left token
            (paper, IV).
        generator: Draw the offsets at random with it instead.
        device: Of the result; by default that of `offsets`.

    Returns:
        Raster index (int64) in the grid, prefix not counted, of each cell's destination.

    Raises:
        TypeError: If the offset is not a whole number.
        ValueError: If offsets are not whole numbers, or not one per cell.

    Examples:
        >>> choose_destinations(TokenGrid((3, 4))).tolist()
        [0, 2, 8, 10]
        >>> choose_destinations(TokenGrid((3, 4)), 3).tolist()
        [5, 7, 9, 11]
    """
    if generator is not None:
        offsets = torch.randint(2**31, (grid.destinations,), generator=generator, device=generator.device)
    _check_offsets(offsets, grid)
    if isinstance(offsets, Tensor):
        device = offsets.device if device is None else device
        offsets = offsets.to(device)
    cells = unravel(grid.cells, torch.arange(grid.destinations, device=device))
    corners = [cell * stride for cell, stride in zip(cells, grid.strides, strict=True)]
    within = unravel(cell_extents(grid, cells), offsets)
    return ravel(grid.shape, [corner + inner for corner, inner in zip(corners, within, strict=True)])


def cell_extents(grid: TokenGrid, cells: Sequence[Tensor]) -> list[Tensor]:
    """Tokens along each dimension of the cells with these coordinates (...); partial cells are smaller."""
    # All in Python numbers, since a tensor made of them would be copied to the device.
    dimensions = zip(grid.shape, cells, grid.strides, strict=True)
    return [(length - cell * stride).clamp_max(stride) for length, cell, stride in dimensions]


def source_positions(grid: TokenGrid, destinations: Int[Tensor, "destinations"]) -> Int[Tensor, "sources"]:
    """Grid positions of every token that is not a destination, in raster order."""
    taken = torch.zeros(grid.area, dtype=torch.bool, device=destinations.device)
    taken = taken.scatter(0, destinations, torch.ones_like(destinations, dtype=torch.bool))
    return taken.to(torch.uint8).argsort(stable=True)[: grid.sources]


def unravel(shape: Sequence[int | Tensor], index: Tensor | int) -> Coordinates:
    """Raster index (...) to coordinates (...) along each dimension; an index past the end wraps around."""
    coordinates = []
    for length in reversed(shape):
        coordinates.append(index % length)
        index = index // length
    return tuple(coordinates[::-1])


def ravel(shape: Sequence[int], coordinates: Sequence[Tensor]) -> Tensor:
    """Coordinates (...) along each dimension to raster index (...)."""
    index = coordinates[0]
    for length, coordinate in zip(shape[1:], coordinates[1:], strict=True):
        index = index * length + coordinate
    return index


def _check_offsets(offsets: Tensor | int, grid: TokenGrid) -> None:
    if torch.compiler.is_compiling():
        return
    if not isinstance(offsets, Tensor):
        checks.integer("offsets", offsets, OFFSETS)
    elif offsets.is_floating_point() or (offsets.ndim and offsets.shape[-1] != grid.destinations):
        raise ValueError(
            f"offsets has shape {tuple(offsets.shape)} and dtype {offsets.dtype}; expected {OFFSETS}: "
            f"int64 ({grid.destinations},) for {grid}"
        )
