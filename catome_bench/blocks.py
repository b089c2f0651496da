"""Transformer blocks of well-known models, at their real sizes and token counts, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_flux import (
    FluxPosEmbed,
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed, WanTransformerBlock
from einops import rearrange
from torch import Tensor, nn


class Conditions(nn.Module):
    """Named tensors that move with a module."""

    def __init__(self, **values: Tensor) -> None:
        super().__init__()
        for name, value in values.items():
            self.register_buffer(name, value, persistent=False)

    def values(self) -> dict[str, Any]:
        """The tensors by name."""
        return dict(self.named_buffers())


class ImageHost(nn.Module):
    """A block as diffusers' `Transformer2DModel` hosts it: called with an image (batch, channels, height, width)."""

    def __init__(self, block: BasicTransformerBlock, **conditions: Tensor) -> None:
        super().__init__()
        self.transformer_blocks, self.conditions = nn.ModuleList([block]), Conditions(**conditions)

    def forward(self, image: Tensor) -> Tensor:
        """The image, each pixel a token, through the block."""
        tokens = rearrange(image, "b c h w -> b (h w) c")
        for block in self.transformer_blocks:
            tokens = block(tokens, **self.conditions.values())
        return rearrange(tokens, "b (h w) c -> b c h w", h=image.shape[2])


class RotaryHost(nn.Module):
    """A block that rotates queries and keys by their position: its rotary rows come and go with the tokens."""

    def __init__(self, block: nn.Module, **conditions: Tensor) -> None:
        super().__init__()
        self.block, self.conditions = block, Conditions(**conditions)

    def forward(self, tokens: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        """Tokens (batch, tokens, channels) and rows (1 or batch, tokens, 2, width): cosines and sines."""
        raise NotImplementedError


class FluxHost(RotaryHost):
    """Both streams of Flux: what the block makes of the image tokens, then of the text."""

    def forward(self, tokens: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        """Its rotary rows have no batch dimension, and begin with the text's."""
        given = self.conditions.values()
        cosine, sine = torch.cat([given["text_rows"], rows], 1)[0].unbind(1)
        text, image = self.block(tokens, given["text"], given["time"], (cosine, sine))
        return image, text


class WanHost(RotaryHost):
    """A Wan block: video tokens, with cross-attention to the text."""

    def forward(self, tokens: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        """Its rotary rows broadcast over the heads."""
        given = self.conditions.values()
        return (self.block(tokens, given["text"], given["time"], rows[:, :, :, None].unbind(2)),)


class Case(NamedTuple):
    """A block and what it is called with.

    Attributes:
        build: Makes the host for a batch size.
        grid: Shape of the token grid.
        channels: Of a token.
        batch: Samples; two where the model is usually run with guidance in one batch.
        rows: Makes the rotary rows (1, tokens, 2, width) of a grid; None for a model without them.
    """

    build: Callable[[int], nn.Module]
    grid: tuple[int, ...]
    channels: int
    batch: int = 2
    rows: Callable[[tuple[int, ...]], Tensor] | None = None

    def host(self, device: str, dtype: torch.dtype) -> nn.Module:
        """The host with weights from a fixed seed."""
        with torch.device(device):
            torch.manual_seed(0)
            return self.build(self.batch).to(dtype).eval().requires_grad_(False)

    def inputs(self, device: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """An image for an `ImageHost`, tokens and rotary rows for a `RotaryHost`."""
        tokens = torch.randn(self.batch, prod(self.grid), self.channels, device=device, dtype=dtype)
        if self.rows is None:
            return (rearrange(tokens, "b (h w) c -> b c h w", h=self.grid[0]),)
        # In float32, as the models keep them.
        return tokens, self.rows(self.grid).to(device, torch.float32)


def build_unet_block(channels: int, heads: int, context: int, text: int = 77) -> Callable[[int], ImageHost]:
    """A block of Stable Diffusion's UNets."""

    def build(batch: int) -> ImageHost:
        block = BasicTransformerBlock(channels, heads, channels // heads, cross_attention_dim=context)
        return ImageHost(block, encoder_hidden_states=torch.randn(batch, text, context))

    return build


class Nothing(nn.Module):
    """In the place of a part that is left out: adds nothing to the residual."""

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Zeros."""
        return torch.zeros_like(tokens)


def build_self_attention(channels: int, heads: int) -> Callable[[int], ImageHost]:
    """What the paper merges around, alone: norm, self-attention and residual of a UNet's block."""

    def build(batch: int) -> ImageHost:
        block = BasicTransformerBlock(channels, heads, channels // heads)
        block.norm3, block.ff = nn.Identity(), Nothing()
        return ImageHost(block)

    return build


def build_pixart_block(channels: int = 1152, heads: int = 16, text: int = 120) -> Callable[[int], ImageHost]:
    """A block of PixArt: one modulation for the whole network."""
    options: dict[str, Any] = {"norm_type": "ada_norm_single", "norm_elementwise_affine": False, "norm_eps": 1e-6}
    options |= {"activation_fn": "gelu-approximate", "attention_bias": True, "num_embeds_ada_norm": 1000}

    def build(batch: int) -> ImageHost:
        block = BasicTransformerBlock(channels, heads, channels // heads, cross_attention_dim=channels, **options)
        time = torch.randn(batch, 6 * channels)
        return ImageHost(block, encoder_hidden_states=torch.randn(batch, text, channels), timestep=time)

    return build


def build_flux_block(
    kind: type[nn.Module], heads: int = 24, width: int = 128, text: int = 512
) -> Callable[[int], FluxHost]:
    """A double or single block of Flux."""
    channels = heads * width

    def build(batch: int) -> FluxHost:
        # Text stands at position zero: cosine one, sine zero.
        rows = torch.tensor([1.0, 0.0])[None, None, :, None].repeat(1, text, 1, width)
        given = {"text": torch.randn(batch, text, channels), "time": torch.randn(batch, channels), "text_rows": rows}
        return FluxHost(kind(channels, heads, width), **given)

    return build


def build_wan_block(
    channels: int = 1536, inner: int = 8960, heads: int = 12, text: int = 512
) -> Callable[[int], WanHost]:
    """A block of Wan 2.1."""

    def build(batch: int) -> WanHost:
        block = WanTransformerBlock(channels, inner, heads, cross_attn_norm=True)
        return WanHost(block, text=torch.randn(batch, text, channels), time=torch.randn(batch, 6, channels))

    return build


def flux_rows(grid: tuple[int, ...], width: int = 128) -> Tensor:
    """Rotary rows of Flux for a grid (height, width)."""
    positions = torch.cartesian_prod(*(torch.arange(length) for length in (1, *grid)))
    embed = FluxPosEmbed(10000, [width // 8, width * 7 // 16, width * 7 // 16])
    return torch.stack(embed(positions), 1)[None]


def wan_rows(grid: tuple[int, ...], width: int = 128) -> Tensor:
    """Rotary rows of Wan for a grid (frames, height, width)."""
    embed = WanRotaryPosEmbed(width, (1, 1, 1), 1024)
    return torch.stack([part[:, :, 0] for part in embed(torch.empty(1, 1, *grid))], 2)


CASES: Mapping[str, Case] = MappingProxyType(
    {
        "sd15-512-attention": Case(build_self_attention(320, 8), (64, 64), 320),
        "sd15-512": Case(build_unet_block(320, 8, 768), (64, 64), 320),
        "sdxl-1024-top": Case(build_unet_block(640, 10, 2048), (64, 64), 640),
        "sdxl-1024-deep": Case(build_unet_block(1280, 20, 2048), (32, 32), 1280),
        "pixart-1024": Case(build_pixart_block(), (64, 64), 1152),
        "sd15-1024": Case(build_unet_block(320, 8, 768), (128, 128), 320),
        "flux-1024-double": Case(build_flux_block(FluxTransformerBlock), (64, 64), 3072, 1, flux_rows),
        "flux-1024-single": Case(build_flux_block(FluxSingleTransformerBlock), (64, 64), 3072, 1, flux_rows),
        "wan-480p": Case(build_wan_block(), (21, 30, 52), 1536, 1, wan_rows),
    }
)
"""Real sizes: 512 or 1024 pixels; Wan 2.1 1.3B with 81 frames at 480 x 832."""

SMALL_CASES = ("sd15-512-attention", "sd15-512", "sdxl-1024-top", "sdxl-1024-deep", "pixart-1024")
"""Those that a processor bears."""
