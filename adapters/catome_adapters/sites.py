"""Where a model keeps its tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from catome_adapters.grids import Measure, image_plane
from catome_adapters.layouts import BlockLayout

PLAIN = BlockLayout()


@dataclass(frozen=True, eq=False)
class MergeSite:
    """One transformer block whose tokens can be merged.

    It says where tokens are, and nothing of what the block does with them. For a block that no adapter knows, make
    one by hand: see "Your own blocks" in the documentation.

    Attributes:
        name: The block's path in the model.
        block: The transformer block.
        attention: Its self-attention.
        host: The module that is called, before the block, with what tells the grid: often the model itself.
        level: How many times coarser than the model's finest the grid is, per dimension.
        shape: Size of the grid at the model's default size; None if the model tells none.
        measure: From the host's arguments to the size of the grid; by default the first argument is an image
            (batch, channels, height, width) with a token for every pixel.
        layout: How the block takes and returns its tokens.
        prefix: Tokens in front of the grid (class and register tokens) that never merge.
        also: Further self-attention of the same tokens inside the block.
        stepped: Whether the model is called step by step; False for a model that sees every input once.
    """

    name: str
    block: nn.Module
    attention: nn.Module
    host: nn.Module
    level: int = 1
    shape: tuple[int, ...] | None = None
    measure: Measure = image_plane
    layout: BlockLayout = PLAIN
    prefix: int = 0
    also: tuple[nn.Module, ...] = ()
    stepped: bool = True

    def __post_init__(self) -> None:
        inside = list(self.block.modules())
        for attention in self.attentions:
            if not any(attention is part for part in inside):
                raise ValueError(
                    f"{self.name}: its attention {type(attention).__name__} is not inside its block "
                    f"{type(self.block).__name__}; pass a block and the self-attention that this very block calls"
                )

    @property
    def attentions(self) -> tuple[nn.Module, ...]:
        """All self-attention in the block."""
        return (self.attention, *self.also)


@dataclass(frozen=True, eq=False)
class SkippedSite:
    """A place that is left alone, and why; `site` is set if tokens could have been merged there."""

    name: str
    reason: str
    site: MergeSite | None = None
