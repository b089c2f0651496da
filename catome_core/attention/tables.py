"""Which keys a tile of queries sees: every token of the cells around it, and one token of each cell beyond."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from catome_core.attention.field import NearField
from catome_core.calls import has_values, is_captured
from catome_core.grid import Coordinates, TokenGrid, cell_extents, ravel, unravel
from catome_core.tiles import Axis, cross, index_in_tiles

if TYPE_CHECKING:
    from jaxtyping import Float32, Int


class FieldIndex(NamedTuple):
    """Where the queries and keys of every tile are in the sequence. All but the bias are int64.

    Attributes:
        outside: The tokens of no grid.
        queries: The queries of every tile; some twice, where the tiles do not divide the grid.
        near: The keys that are seen one by one, tokens of no grid first.
        far: The cells of which one token is seen.
        beyond: The same cells apart, those beyond along each dimension that a window does not cover. Tiles that are
            alike up to that dimension share them: such groups are of equally many consecutive tiles.
        bias: log of the number of tokens that each key counts for: -inf where a window has fewer tokens than others.
        inverse: For every token, its index among the tokens of no grid and then the queries of all tiles.
    """

    outside: Int[Tensor, "outside"]
    queries: Int[Tensor, "tiles queries"]
    near: Int[Tensor, "tiles outside+near"]
    far: Int[Tensor, "tiles far"]
    beyond: tuple[Int[Tensor, "groups beyond"], ...]
    bias: Float32[Tensor, "1|tiles 1 1 keys"]
    inverse: Int[Tensor, "tokens"]

    def asked_by_grid(self, field: NearField) -> FieldIndex:
        """The same where only the grid's tokens are queries, counted from the first of them."""
        inverse = self.inverse[field.lead : field.tokens - field.back] - field.outside
        return self._replace(outside=self.outside[:0], queries=self.queries - field.lead, inverse=inverse)


def index_field(field: NearField, tokens: Tensor, *, grid_alone: bool = False) -> FieldIndex:
    """The index for a call with these tokens, or with the grid's as its only queries.

    It is computed in compiled code, else kept from call to call.
    """
    if torch.compiler.is_compiling() or not has_values(tokens) or is_captured(tokens):
        return _index_field(field, tokens.device, grid_alone)
    return _kept_index(field, tokens.device, grid_alone)


@lru_cache(maxsize=8)
def _kept_index(field: NearField, device: torch.device, grid_alone: bool) -> FieldIndex:
    # What is made in inference mode could not be used outside of it.
    with torch.inference_mode(mode=False):
        return _index_field(field, device, grid_alone)


def _index_field(field: NearField, device: torch.device, grid_alone: bool) -> FieldIndex:
    grid, axes, lead = field.grid, field.axes, field.lead
    tiles = [torch.arange(axis.tiles, device=device) for axis in axes]
    queries = cross([axis.tokens_of(tile) for axis, tile in zip(axes, tiles, strict=True)])
    near = cross([axis.window_tokens_of(tile) for axis, tile in zip(axes, tiles, strict=True)])
    beyond = _cells_beyond(grid, axes, tiles)
    far = torch.cat([cells.repeat_interleave(field.tiles // len(cells), 0) for cells in beyond], 1)
    front, back = (
        torch.arange(lead, device=device),
        torch.arange(field.tokens - field.back, field.tokens, device=device),
    )
    outside = torch.cat([front, back])
    inside = [position.clamp_max(length - 1) for position, length in zip(near, grid.shape, strict=True)]
    near_index = torch.cat([outside.expand(field.tiles, -1), ravel(grid.shape, inside) + lead], 1)
    image = index_in_tiles(grid, axes, torch.arange(grid.area, device=device)) + field.outside
    inverse = torch.cat([front, image, back - grid.area])
    bias = _bias(field, near, unravel(grid.cells, far))
    index = FieldIndex(outside, ravel(grid.shape, queries) + lead, near_index, far, beyond, bias, inverse)
    return index.asked_by_grid(field) if grid_alone else index


def _cells_beyond(
    grid: TokenGrid, axes: list[Axis], tiles: list[Int[Tensor, "tiles"]]
) -> tuple[Int[Tensor, "groups beyond"], ...]:
    """All cells outside of the windows, for each dimension those at or past a window's end.

    They are inside the window along the dimensions that come earlier and anywhere along those that come later. Counted
    around the border, they are equally many for all windows.
    """
    windows = [axis.window_of(tile) for axis, tile in zip(axes, tiles, strict=True)]
    boxes = []
    for number, axis in enumerate(axes):
        if axis.window == axis.cells:
            continue
        past = torch.arange(axis.window, axis.cells, device=tiles[0].device)
        after = [torch.arange(one.cells, device=past.device)[None] for one in axes[number + 1 :]]
        box = cross([*windows[:number], (windows[number][:, :1] + past) % axis.cells, *after])
        boxes.append(ravel(grid.cells, box))
    return tuple(boxes)


def _bias(field: NearField, near: Coordinates, far: Coordinates) -> Float32[Tensor, "1|tiles 1 1 keys"]:
    within = [position < axis.length for position, axis in zip(near, field.axes, strict=True)]
    near_size, far_size = torch.stack(within).all(0).long(), torch.stack(cell_extents(field.grid, far)).prod(0)
    outside = near_size.new_ones(1).expand(field.tiles, field.outside)
    size = torch.cat([outside, near_size, far_size], 1)
    if field.has_whole_cells:
        size = size[:1]
    return size[:, None, None].float().log()
