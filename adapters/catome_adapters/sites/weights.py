"""Counting the weights of a site, which decide how much it computes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from catome_adapters.sites.site import MergeSite

TEXT_TOKENS = 77
"""Keys of cross-attention: a prompt for CLIP."""

NOT_PER_TOKEN = ("norm", "mod", "adaln", "adaLN", "context", "txt", "add_", "audio")
"""Parts of the names of layers that modulate, once per sample, or that process text or sound."""


OPERATIONS_PER_MODULE = 3
"""By the time that blocks with next to no tokens take: 41 to 48 us a module on a CPU, 56 us on a GPU."""


class Flops(NamedTuple):
    """FLOPs of one sample: in matrix products with weights, and between tokens inside attention."""

    linear: float
    attention: float


class SiteWeights(NamedTuple):
    """What decides the arithmetic of a site. Weights are those of linear layers: 2 FLOPs each per token.

    Attributes:
        channels: Channels of a token.
        width: Channels inside self-attention, all heads together.
        projections: Weights of self-attention.
        rest: Weights of the block's other layers that image tokens pass through.
        text_width: Channels inside cross-attention, all heads together; 0 without one.
        itemsize: Bytes of a number.
        takes_keys: Whether keys that are merged before their projections spare these projections.
        operations: Number of operations of the block, roughly, each of which takes a launch.
    """

    channels: int
    width: int
    projections: int
    rest: int
    text_width: int
    itemsize: int
    takes_keys: bool = True
    operations: float = 0

    def attention_flops(self, tokens: int) -> float:
        """FLOPs between this many tokens inside self-attention."""
        return 4 * tokens**2 * self.width

    def saved_in_attention(self, tokens: int, removed: float) -> float:
        """FLOPs inside self-attention that a sample saves when this share of its tokens is removed."""
        return (1 - (1 - removed) ** 2) * self.attention_flops(tokens)

    def saved_in_block(self, tokens: int, removed: float) -> Flops:
        """FLOPs of the whole block that a sample saves; with everything removed, all that the block does with tokens.

        Examples:
            >>> weights = SiteWeights(channels=8, width=8, projections=256, rest=1024, text_width=0, itemsize=4)
            >>> weights.saved_in_block(100, 0.5)
            Flops(linear=128000.0, attention=240000.0)
        """
        linear, text = 2 * tokens * (self.projections + self.rest), 4 * tokens * TEXT_TOKENS * self.text_width
        return Flops(removed * linear, self.saved_in_attention(tokens, removed) + removed * text)


def count_weights(site: MergeSite) -> SiteWeights:
    """Count the weights of a site's linear layers.

    Examples:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> count_weights(MergeSite("layer", layer, layer.self_attn, layer)).rest
        256
    """
    linear = _linear_layers(site.attention)
    channels, width = _widths(linear)
    second = getattr(site.block, "attn2", None)
    cross = None if second in site.other_attentions else second
    queries = _linear_layers(getattr(cross, "to_q", None))
    text = [part for name in ("to_k", "to_v") for part in _linear_layers(getattr(cross, name, None))]
    projections = _count(linear)
    rest = _count(_linear_layers(site.block)) - projections - _count(text)
    text_width = queries[0].out_features if queries else 0
    itemsize = linear[0].weight.element_size() if linear else 4
    takes_keys, operations = site.layout.takes_keys, count_operations(site.block)
    return SiteWeights(channels, width, projections, rest, text_width, itemsize, takes_keys, operations)


def count_operations(module: nn.Module) -> int:
    """Operations of a module, roughly: in transformer blocks, three for each of the modules that have no parts.

    Examples:
        >>> count_operations(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.ReLU())))
        9
    """
    return OPERATIONS_PER_MODULE * sum(next(part.children(), None) is None for part in module.modules())


def _widths(linear: list[nn.Linear]) -> tuple[int, int]:
    """Channels of a token, and inside self-attention, whose first layer may make queries, keys and values at once."""
    if not linear:
        return 0, 0
    channels, width = linear[0].in_features, linear[0].out_features
    return channels, width // 3 if width == 3 * channels else width


def _linear_layers(module: nn.Module | None) -> list[nn.Linear]:
    """The layers that every token of the grid passes through."""
    if module is None:
        return []
    parts = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    return [part for name, part in parts.items() if not any(word in name for word in NOT_PER_TOKEN)]


def _count(parts: Iterable[nn.Linear]) -> int:
    # Not `numel`: quantized weights are packed.
    return sum(part.in_features * part.out_features for part in parts)
