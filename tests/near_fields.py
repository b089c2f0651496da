"""Near fields as tests draw them, and attention over all keys with weights made in loops."""

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

import oracle
from catome_core import NearField, TokenGrid, choose_destinations
from strategies import cell_offsets, destinations_at, seeds

BATCH, HEADS, CHANNELS = 2, 2, 4
STRIDES = {2: [1, 2, (1, 2), (2, 4), (4, 4), (3, 2)], 3: [1, 2, (1, 2, 2), (2, 1, 3)]}
# The bias itself is a float32.
TOLERANCE = {"rtol": 0, "atol": 16 * torch.finfo(torch.float32).eps}


class Scene(NamedTuple):
    """A near field and the anchors of its cells, with room for what is drawn for them."""

    field: NearField
    anchors: Tensor
    generator: torch.Generator

    def make(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def call(self, key_heads: int = HEADS, channels: int = CHANNELS) -> dict[str, Tensor]:
        shapes = {"query": HEADS, "key": key_heads, "value": key_heads}
        return {name: self.make(BATCH, heads, self.field.tokens, channels) for name, heads in shapes.items()}

    @property
    def weights(self) -> Tensor:
        """(tokens, tokens): how many tokens each key counts for, from the oracle."""
        field = self.field
        options = {"near": field.near, "tile": field.tile, "front": field.front, "back": field.back}
        return torch.tensor(oracle.weigh_keys(field.grid, self.anchors.tolist(), **options), dtype=torch.float64)


@st.composite
def scenes(draw, *, whole_cells: bool = False) -> Scene:
    """2-D and 3-D, mostly with fewer near cells than there are, partial cells included where they are wanted."""
    shape = draw(st.tuples(*[st.integers(1, 11)] * 2) | st.tuples(*[st.integers(1, 5)] * 3))
    grid = TokenGrid(shape, draw(st.sampled_from(STRIDES[len(shape)])), draw(st.integers(0, 2)))
    if whole_cells:
        shape = tuple(cells * stride for cells, stride in zip(grid.cells, grid.strides, strict=True))
        grid = TokenGrid(shape, grid.strides, grid.prefix)
    front, back = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    field = NearField(grid, draw(st.integers(0, 2)), front, back, draw(st.integers(1, 6)))
    anchors = destinations_at(grid, draw(cell_offsets(grid)))
    anchors = choose_destinations(grid) if anchors is None else anchors
    return Scene(field, anchors, torch.Generator().manual_seed(draw(seeds)))


def weighted(call: dict[str, Tensor], weights: Tensor, mask: Tensor | float = 0.0) -> Tensor:
    """Attention over all keys, each with its weight."""
    scores = call["query"] @ call["key"].mT * call.get("scale", call["query"].shape[-1] ** -0.5) + mask + weights.log()
    return scores.softmax(-1) @ call["value"]
