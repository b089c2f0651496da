"""Where tokens lie: the grid, its cells, and the destination of each cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

import torch
from torch import Tensor

Coordinates = tuple[Tensor, ...]


@dataclass(frozen=True)
class TokenGrid:
    """The layout of a token sequence: prefix tokens, then a 2-D or 3-D grid in raster order.

    The grid is cut into cells of `stride`; each cell has one *destination*, all its other tokens are *sources*
    (paper, III-A). A partial cell at the border is a cell of its own.

    Args:
        shape: Grid size, (height, width) or (frames, height, width).
        stride: Cell size, one number or one per dimension.
        prefix: Tokens in front of the grid (class, register or text tokens) that are never merged.

    Raises:
        ValueError: If a number is not positive, `prefix` is negative, or the dimensions do not fit.

    Examples:
        >>> grid = TokenGrid((4, 6), prefix=1)
        >>> grid.tokens, grid.destinations, grid.sources
        (25, 6, 18)
    """

    shape: tuple[int, ...]
    stride: int | tuple[int, ...] = 2
    prefix: int = 0

    def __post_init__(self) -> None:
        shape = tuple(self.shape)
        stride = (self.stride,) * len(shape) if isinstance(self.stride, int) else tuple(self.stride)
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise ValueError(f"shape is {self.shape}; expected positive (height, width) or (frames, height, width)")
        if len(stride) != len(shape) or min(stride) < 1:
            raise ValueError(f"stride is {self.stride}; expected a positive number, or one for each of shape {shape}")
        if self.prefix < 0:
            raise ValueError(f"prefix is {self.prefix}; expected 0 or the number of tokens in front of the grid")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "stride", stride)

    @property
    def cells(self) -> tuple[int, ...]:
        """Number of cells along each dimension."""
        return tuple(ceil(length / step) for length, step in zip(self.shape, self.steps, strict=True))

    @property
    def steps(self) -> tuple[int, ...]:
        """Cell size along each dimension: `stride`, always as a tuple."""
        return self.stride if isinstance(self.stride, tuple) else (self.stride,) * len(self.shape)

    @property
    def area(self) -> int:
        """Tokens of the grid itself, prefix aside."""
        return prod(self.shape)

    @property
    def tokens(self) -> int:
        """Length of the whole sequence, prefix included."""
        return self.prefix + self.area

    @property
    def destinations(self) -> int:
        """Number of destinations: one per cell."""
        return prod(self.cells)

    @property
    def sources(self) -> int:
        """Number of sources: the grid's tokens that are not destinations."""
        return self.area - self.destinations

    def places(self, capacity: float | None) -> int:
        """Kept places at a capacity: that fraction of the grid's tokens, rounded up, at most every source."""
        if capacity is None:
            return self.sources
        # 0.55 * 100 is 55.000000000000007 in floats, and means 55.
        return min(self.sources, ceil(round(capacity * self.area, 6)))

    def slots(self, capacity: float | None) -> int:
        """Length of the merged sequence at a capacity: prefix, destinations and kept places."""
        return self.prefix + self.destinations + self.places(capacity)


def choose_destinations(
    grid: TokenGrid,
    places: Tensor | int = 0,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Choose the destination of every cell.

    Args:
        grid: The layout.
        places: Which token of its cell, counted in raster order within the cell: one number, or int64 (destinations,).
            Taken modulo the cell's number of tokens, so partial cells are safe. 0 is the top-left token (paper, IV).
        generator: Draw the places at random with it instead.
        device: Of the result; by default that of `places`.

    Returns:
        int64 (destinations,): raster index in the grid (prefix not counted) of each cell's destination.

    Examples:
        >>> choose_destinations(TokenGrid((3, 4))).tolist()
        [0, 2, 8, 10]
        >>> choose_destinations(TokenGrid((3, 4)), 3).tolist()
        [5, 7, 9, 11]
    """
    if generator is not None:
        places = torch.randint(2**31, (grid.destinations,), generator=generator, device=generator.device)
    if isinstance(places, Tensor):
        device = places.device if device is None else device
        places = places.to(device)
    cells = unflatten(grid.cells, torch.arange(grid.destinations, device=device))
    corners = [cell * step for cell, step in zip(cells, grid.steps, strict=True)]
    # Partial cells are smaller; all in Python numbers, since a tensor made of them would be copied to the device.
    measures = zip(grid.shape, corners, grid.steps, strict=True)
    extents = [(length - corner).clamp_max(step) for length, corner, step in measures]
    offsets = unflatten(extents, places)
    return flatten(grid.shape, [corner + offset for corner, offset in zip(corners, offsets, strict=True)])


def source_positions(grid: TokenGrid, destinations: Tensor) -> Tensor:
    """Grid positions (sources,) of every token that is not a destination, in raster order."""
    taken = torch.zeros(grid.area, dtype=torch.bool, device=destinations.device)
    taken = taken.scatter(0, destinations, torch.ones_like(destinations, dtype=torch.bool))
    return taken.to(torch.uint8).argsort(stable=True)[: grid.sources]


def unflatten(shape: Sequence[int | Tensor], index: Tensor | int) -> Coordinates:
    """Raster index (...) to coordinates (...) along each dimension; an index beyond the end begins anew."""
    coordinates = []
    for length in reversed(shape):
        coordinates.append(index % length)
        index = index // length
    return tuple(coordinates[::-1])


def flatten(shape: Sequence[int], coordinates: Sequence[Tensor]) -> Tensor:
    """Coordinates (...) along each dimension to raster index (...)."""
    index = coordinates[0]
    for length, coordinate in zip(shape[1:], coordinates[1:], strict=True):
        index = index * length + coordinate
    return index
