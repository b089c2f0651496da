"""One transformer block whose tokens can be merged."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from torch import nn

from catome_adapters.sites.grid import Measure, image_plane
from catome_adapters.sites.layout import BlockLayout

PLAIN = BlockLayout()


@dataclass(frozen=True, eq=False)
class MergeSite:
    """One transformer block whose tokens can be merged.

    A site says where the tokens are, and nothing about what the block does with them. For a block that the library
    does not recognize, make a site by hand: see "Blocks of your own" in the documentation.

    Attributes:
        name: The block's path in the model.
        block: The transformer block.
        attention: Its self-attention.
        host: The module that is called before the block with the arguments that give the grid: often the model itself.
        level: How many times coarser than the model's finest grid this one is, per dimension.
        shape: Size of the grid at the model's default size; None if the model has no default size.
        grid_of: Computes the size of the grid from the host's arguments; by default the first argument is an image
            (batch, channels, height, width) with one token per pixel.
        layout: How the block takes and returns its tokens.
        prefix: Number of tokens in front of the grid (class and register tokens), which never merge.
        other_attentions: Further self-attention over the same tokens inside the block.
        readers: Attention inside the block through which other tokens (of sound, say) look at these: its keys are
            slots where the whole block runs on merged tokens, and only there does it take account of them.
        denoises: Whether the model is called once per denoising step; False for a model that is called once per input.
        network: The network that runs the blocks, where it is not the host.
        looks_near: Whether its self-attention looks at near tokens above all; in a UNet convolutions do that.
    """

    name: str
    block: nn.Module
    attention: nn.Module
    host: nn.Module
    _: KW_ONLY
    level: int = 1
    shape: tuple[int, ...] | None = None
    grid_of: Measure = image_plane
    layout: BlockLayout = PLAIN
    prefix: int = 0
    other_attentions: tuple[nn.Module, ...] = ()
    readers: tuple[nn.Module, ...] = ()
    denoises: bool = True
    network: nn.Module | None = None
    looks_near: bool = True

    def __post_init__(self) -> None:
        inside = list(self.block.modules())
        for attention in (*self.attentions, *self.readers):
            if not any(attention is part for part in inside):
                raise ValueError(
                    f"{self.name}: its attention {type(attention).__name__} is not inside its block "
                    f"{type(self.block).__name__}; pass a block and the self-attention that this very block calls"
                )

    @property
    def checkpoints_gradients(self) -> bool:
        """Whether gradient checkpointing is switched on around the block, or for parts of it, by any library's name."""
        modules, names = (self.host, self.network, self.block), ("gradient_checkpointing", "grad_checkpointing")
        return any(getattr(module, name, False) for module in modules for name in names)

    @property
    def caller(self) -> nn.Module:
        """The network that runs the blocks: `network`, or the host."""
        return self.network or self.host

    @property
    def attentions(self) -> tuple[nn.Module, ...]:
        """All self-attention in the block."""
        return (self.attention, *self.other_attentions)

    def __repr__(self) -> str:
        """Short: modules print their whole contents."""
        block, tokens = type(self.block).__name__, "tokens of no default size"
        if self.shape is not None:
            grid = " x ".join(map(str, self.shape))
            tokens = f"{grid} tokens" if self.prefix == 0 else f"{self.prefix} + {grid} tokens"
        return f"MergeSite({self.name!r}, {block}, {tokens}, level {self.level})"


class Reason(str):
    """Why a block is skipped; where a function returns it instead of what it looked for."""


@dataclass(frozen=True, eq=False)
class SkippedSite:
    """A block that is left alone, and why; `site` is set if its tokens could have been merged."""

    name: str
    reason: str
    site: MergeSite | None = None

    def __repr__(self) -> str:
        return f"SkippedSite({self.name!r}, {self.reason!r})"
