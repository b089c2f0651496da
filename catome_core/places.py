"""Which token of its cell is the destination, from checkpoint to checkpoint, without a generator in the graph."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from catome_core.grid import TokenGrid

Destination = Literal["top-left", "random", "rotate"]


def first_places(destination: Destination, seed: int, grid: TokenGrid, device: torch.device) -> Tensor:
    """int64 (destinations,) for `choose_destinations`, at the first checkpoint."""
    cells = torch.arange(grid.destinations, device=device)
    return _scramble(cells + seed) if destination == "random" else torch.zeros_like(cells)


def next_places(destination: Destination, places: Tensor) -> Tensor:
    """Those of the next checkpoint."""
    if destination == "random":
        return _scramble(places + 1)
    return places + 1 if destination == "rotate" else places


def _scramble(numbers: Tensor) -> Tensor:
    """Mix the bits of int64 numbers below 2**31 (an integer hash)."""
    for _ in range(2):
        numbers = ((numbers >> 16) ^ numbers) * 0x45D9F3B & 0x7FFFFFFF
    return (numbers >> 16) ^ numbers
