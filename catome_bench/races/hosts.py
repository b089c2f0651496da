"""Modules that call one transformer block as its model would."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from diffusers.models.attention import BasicTransformerBlock
from einops import rearrange
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


class Conditions(nn.Module):
    """Named tensors that move with a module, as buffers."""

    def __init__(self, **values: Tensor) -> None:
        super().__init__()
        for name, value in values.items():
            self.register_buffer(name, value, persistent=False)

    def values(self) -> dict[str, Any]:
        """The tensors by name."""
        return dict(self.named_buffers())


class ImageHost(nn.Module):
    """Calls a block as diffusers' `Transformer2DModel` does, with the tokens of an image."""

    def __init__(self, block: BasicTransformerBlock, **conditions: Tensor) -> None:
        super().__init__()
        self.transformer_blocks, self.conditions = nn.ModuleList([block]), Conditions(**conditions)

    @property
    def block(self) -> BasicTransformerBlock:
        """The one block."""
        block = self.transformer_blocks[0]
        assert isinstance(block, BasicTransformerBlock)
        return block

    def forward(self, image: Tensor) -> Tensor:
        """Run an image (batch, channels, height, width) through the block, one token per pixel."""
        tokens = rearrange(image, "b c h w -> b (h w) c")
        for block in self.transformer_blocks:
            tokens = block(tokens, **self.conditions.values())
        return rearrange(tokens, "b (h w) c -> b c h w", h=image.shape[2])


class RotaryHost(nn.Module):
    """Calls a block with rotary position embedding, given the rotary rows of its tokens."""

    block: nn.Module

    def __init__(self, block: nn.Module, **conditions: Tensor) -> None:
        super().__init__()
        self.block, self.conditions = block, Conditions(**conditions)

    def forward(self, tokens: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        """Run tokens (batch, tokens, channels) with rows (1 or batch, tokens, 2, width), the cosines and sines."""
        raise NotImplementedError


class FluxHost(RotaryHost):
    """Calls a Flux block; returns the image tokens and then the text tokens."""

    def forward(self, tokens: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        """Pass rotary rows without a batch dimension, those of the text first."""
        given = self.conditions.values()
        cosine, sine = torch.cat([given["text_rows"], rows], 1)[0].unbind(1)
        text, image = self.block(tokens, given["text"], given["time"], (cosine, sine))
        return image, text


class WanHost(RotaryHost):
    """Calls a Wan block on video tokens, with cross-attention to the text."""

    def forward(self, tokens: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        """Pass rotary rows that broadcast over the heads."""
        given = self.conditions.values()
        return (self.block(tokens, given["text"], given["time"], rows[:, :, :, None].unbind(2)),)


class Zeros(nn.Module):
    """Replaces a submodule that is left out: adds nothing to the residual stream."""

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Zeros in the shape of the tokens."""
        return torch.zeros_like(tokens)


def twin(module: Module) -> Module:
    """A copy of a module, with hooks of its own, that shares all weights and buffers.

    Examples:
        >>> linear = nn.Linear(2, 2)
        >>> twin(linear).weight is linear.weight
        True
    """
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


Host = ImageHost | RotaryHost
