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

from catome_bench.races.hosts import FluxHost, Host, ImageHost, WanHost, Zeros


class Case(NamedTuple):
    """A block and the size of its input.

    Attributes:
        build: Builds the host for a batch size.
        grid: Shape of the token grid.
        channels: Channels of a token.
        batch: Samples; two where guidance usually runs in one batch.
        rows: Makes the rotary rows (1, tokens, 2, width) of a grid; None for a model without rotary embedding.
    """

    build: Callable[[int], Host]
    grid: tuple[int, ...]
    channels: int
    batch: int = 2
    rows: Callable[[tuple[int, ...]], Tensor] | None = None

    def host(self, device: str, dtype: torch.dtype) -> Host:
        """Build the host with weights from a fixed seed."""
        with torch.device(device):
            torch.manual_seed(0)
            return self.build(self.batch).to(dtype).eval().requires_grad_(False)

    def inputs(self, device: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Make an image for an `ImageHost`, or tokens and rotary rows for a `RotaryHost`."""
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


def build_self_attention(channels: int, heads: int) -> Callable[[int], ImageHost]:
    """Only the part of a UNet's block that the paper merges around: norm, self-attention and residual."""

    def build(batch: int) -> ImageHost:
        block = BasicTransformerBlock(channels, heads, channels // heads)
        # Through `add_module`, because the block declares other classes for the two.
        block.add_module("norm3", nn.Identity())
        block.add_module("ff", Zeros())
        return ImageHost(block)

    return build


def build_pixart_block(channels: int = 1152, heads: int = 16, text: int = 120) -> Callable[[int], ImageHost]:
    """A block of PixArt, whose modulation is shared by the whole network."""
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
        # All text is at position zero: cosine one, sine zero.
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
        "flux-1024-double": Case(build_flux_block(FluxTransformerBlock), (64, 64), 3072, batch=1, rows=flux_rows),
        "flux-1024-single": Case(build_flux_block(FluxSingleTransformerBlock), (64, 64), 3072, batch=1, rows=flux_rows),
        "wan-480p": Case(build_wan_block(), (21, 30, 52), 1536, batch=1, rows=wan_rows),
    }
)
"""Real sizes: 512 or 1024 pixels; Wan 2.1 1.3B with 81 frames at 480 x 832."""

SMALL_CASES = ("sd15-512-attention", "sd15-512", "sdxl-1024-top", "sdxl-1024-deep", "pixart-1024")
"""The cases that are small enough for a CPU."""
