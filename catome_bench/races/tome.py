"""Token Merging for ViTs as published (Bolya et al. 2023), written from the paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Forward = Callable[[Tensor], Tensor]


def publish(model: Any, counts: Sequence[int], proportional: bool) -> Forward:
    """A forward pass that merges by the keys of each block's attention, before its feed-forward.

    Args:
        model: A `VisionTransformer` of timm.
        counts: Tokens to merge away in each block.
        proportional: Attention weights every key by the number of tokens it stands for.

    Returns:
        A function from images (batch, channels, height, width) to logits (batch, classes).
    """

    def forward(images: Tensor) -> Tensor:
        tokens = model.norm_pre(model._pos_embed(model.patch_embed(images)))
        size = tokens.new_ones(*tokens.shape[:2], 1)
        for block, count in zip(model.blocks, counts, strict=True):
            attended, keys = _attend(block.attn, block.norm1(tokens), size if proportional else None)
            tokens, size = _merge_by_keys(tokens + block.ls1(attended), size, keys, count)
            tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
        return model.forward_head(model.norm(tokens))

    return forward


def _attend(attention: Any, tokens: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
    """The result of attention (batch, tokens, channels), and its keys averaged over the heads."""
    split = attention.qkv(tokens).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    query, key, value = split.unbind()
    bias = None if size is None else size.log().mT[:, None]
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return attention.proj(attended.transpose(1, 2).flatten(2)), key.mean(1)


def _merge_by_keys(tokens: Tensor, size: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Merge the `count` tokens with the most similar keys; `tokens` and `size` are (batch, tokens, channels or 1)."""
    if count == 0:
        return tokens, size
    unit = F.normalize(keys, dim=-1)
    scores = unit[:, ::2] @ unit[:, 1::2].mT
    scores[:, 0] = -torch.inf  # the class token stays
    best, target = scores.max(-1)
    order = best.argsort(-1, descending=True)[..., None]
    sums = torch.cat([tokens * size, size], -1)
    sources, destinations = sums[:, ::2], sums[:, 1::2]
    merged, kept = (part.expand(-1, -1, sums.shape[-1]) for part in (order[:, :count], order[:, count:].sort(1)[0]))
    slot = target[..., None].gather(1, order[:, :count]).expand_as(merged)
    sums = torch.cat([sources.gather(1, kept), destinations.scatter_add(1, slot, sources.gather(1, merged))], 1)
    return sums[..., :-1] / sums[..., -1:], sums[..., -1:]
