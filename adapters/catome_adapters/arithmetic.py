"""Counting what a site computes, and what it no longer computes when tokens are removed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from catome_adapters.recipe import Scope
from catome_adapters.sites import MergeSite

TEXT_TOKENS = 77
"""Keys of cross-attention: a prompt for CLIP."""

ELSEWHERE = ("norm", "mod", "adaln", "adaLN", "context", "txt", "add_")
"""Parts of the names of layers that modulate, once a sample, or that text passes."""


class SiteWork(NamedTuple):
    """What decides the arithmetic of a site. Weights are those of linear layers: 2 FLOPs each for every token.

    Attributes:
        channels: Of a token.
        width: Channels inside self-attention, all heads together.
        projections: Weights of self-attention.
        rest: Weights of the block's other layers that image tokens pass through.
        text_width: Channels inside cross-attention, all heads together; 0 without one.
        itemsize: Bytes of a number.
        keys_apart: Whether scope "keys" spares the projections of keys and values, too.
    """

    channels: int
    width: int
    projections: int
    rest: int
    text_width: int
    itemsize: int
    keys_apart: bool = True


class Flops(NamedTuple):
    """FLOPs of one sample: in matrix products with weights, and between tokens inside attention."""

    linear: float
    attention: float


def count_work(site: MergeSite) -> SiteWork:
    """Count the weights of a site's linear layers.

    Examples:
        >>> from catome_adapters import find_sites
        >>> from catome_bench.pipeline import build_unet
        >>> count_work(find_sites(build_unet())[0])
        SiteWork(channels=64, width=64, projections=16384, rest=57344, text_width=64, itemsize=4, keys_apart=True)
    """
    linear = _linear(site.attention)
    channels, width = _widths(linear)
    second = getattr(site.block, "attn2", None)
    cross = None if second in site.also else second
    queries = _linear(getattr(cross, "to_q", None))
    text = [part for name in ("to_k", "to_v") for part in _linear(getattr(cross, name, None))]
    projections = _weights(linear)
    rest = _weights(_linear(site.block)) - projections - _weights(text)
    text_width = queries[0].out_features if queries else 0
    itemsize = linear[0].weight.element_size() if linear else 4
    return SiteWork(channels, width, projections, rest, text_width, itemsize, site.layout.keys_apart)


def count_saved(work: SiteWork, tokens: int, removed: float, scope: Scope) -> Flops:
    """FLOPs that a site saves on one sample when this share of its tokens is removed.

    With everything removed, scope "block" is all that the block does with image tokens.

    Examples:
        >>> work = SiteWork(channels=8, width=8, projections=256, rest=1024, text_width=0, itemsize=4)
        >>> count_saved(work, 100, 0.5, "attention"), count_saved(work, 100, 0.5, "keys")
        (Flops(linear=25600.0, attention=240000.0), Flops(linear=12800.0, attention=160000.0))
    """
    projections, between = 2 * tokens * work.projections, 4 * tokens**2 * work.width
    if scope == "keys":
        return Flops(removed * projections / 2 * work.keys_apart, removed * between)
    shorter = (1 - (1 - removed) ** 2) * between
    if scope == "attention":
        return Flops(removed * projections, shorter)
    rest, text = 2 * tokens * work.rest, 4 * tokens * TEXT_TOKENS * work.text_width
    return Flops(removed * (projections + rest), shorter + removed * text)


def _widths(linear: list[nn.Linear]) -> tuple[int, int]:
    """Channels of a token, and inside self-attention, whose first layer may make queries, keys and values at once."""
    if not linear:
        return 0, 0
    channels, width = linear[0].in_features, linear[0].out_features
    return channels, width // 3 if width == 3 * channels else width


def _linear(module: nn.Module | None) -> list[nn.Linear]:
    """The layers that every token of the grid passes."""
    if module is None:
        return []
    parts = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    return [part for name, part in parts.items() if not any(word in name for word in ELSEWHERE)]


def _weights(parts: Iterable[nn.Linear]) -> int:
    # Not `numel`: quantised weights are packed.
    return sum(part.in_features * part.out_features for part in parts)
