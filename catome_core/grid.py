"""Where tokens lie: the grid, its cells, and the destination of each cell."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod

import torch
from torch import Tensor


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
    corners, extents = _cell_corners(grid, device), _cell_extents(grid, device)
    place = places % extents.prod(-1)
    offsets = []
    for extent in reversed(extents.unbind(-1)):
        offsets.append(place % extent)
        place = place // extent
    return flatten(grid.shape, corners + torch.stack(offsets[::-1], -1))


def source_positions(grid: TokenGrid, destinations: Tensor) -> Tensor:
    """Grid positions (sources,) of every token that is not a destination, in raster order."""
    taken = torch.zeros(grid.area, dtype=torch.bool, device=destinations.device)
    taken = taken.scatter(0, destinations, torch.ones_like(destinations, dtype=torch.bool))
    return taken.to(torch.uint8).argsort(stable=True)[: grid.sources]


def unflatten(shape: tuple[int, ...], index: Tensor) -> Tensor:
    """Raster index (...) to coordinates (..., dimensions)."""
    coordinates = []
    for length in reversed(shape):
        coordinates.append(index % length)
        index = index // length
    return torch.stack(coordinates[::-1], -1)


def flatten(shape: tuple[int, ...], coordinates: Tensor) -> Tensor:
    """Coordinates (..., dimensions) to raster index (...)."""
    index = coordinates[..., 0]
    for dimension, length in enumerate(shape[1:], start=1):
        index = index * length + coordinates[..., dimension]
    return index


def _cell_corners(grid: TokenGrid, device: torch.device | str | None) -> Tensor:
    steps = torch.tensor(grid.steps, device=device)
    return unflatten(grid.cells, torch.arange(grid.destinations, device=device)) * steps


def _cell_extents(grid: TokenGrid, device: torch.device | str | None) -> Tensor:
    steps, shape = torch.tensor(grid.steps, device=device), torch.tensor(grid.shape, device=device)
    return torch.minimum(steps, shape - _cell_corners(grid, device))
