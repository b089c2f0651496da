"""Telling `nn.MultiheadAttention` of slots: its sequences come first, and its bool masks say where not to look."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from catome_core.masks import SlotMask
from catome_core.spans import take

Call = tuple[tuple[Any, ...], dict[str, Any]]


def tell_multihead(args: tuple[Any, ...], kwargs: dict[str, Any], mask: SlotMask) -> Call:
    """What `F.multi_head_attention_forward` is called with, for slots.

    Args:
        args: query, key and value (length, batch, channels), its channels and heads, and weights.
        kwargs: With its key_padding_mask (batch, keys) and attn_mask (queries, keys) or (batch * heads, ...).
        mask: What attention must know.
    """
    query, _, _, _, heads, *_ = args
    told = {
        "key_padding_mask": _padding(kwargs.get("key_padding_mask"), query, mask),
        "attn_mask": _of_heads(kwargs.get("attn_mask"), query, heads, mask),
    }
    return (args if mask.merged_queries else _merged_keys(args, mask)), kwargs | told


def _merged_keys(args: tuple[Any, ...], mask: SlotMask) -> tuple[Any, ...]:
    query, key, value, *rest = args
    key = take(key.transpose(0, 1), mask.span.anchors(mask.plan), 1)
    value = mask.span.merge(value.transpose(0, 1), mask.plan)
    return (query, key.transpose(0, 1), value.transpose(0, 1), *rest)


def _padding(given: Tensor | None, query: Tensor, mask: SlotMask) -> Tensor | None:
    """The caller's padding and the bias of slots: (batch, slots)."""
    given = None if given is None else _looking(given)[:, None, None]
    combined = mask.combine(given, query.dtype)
    return None if combined is None else combined[:, 0, 0].expand(query.shape[1], -1)


def _of_heads(given: Tensor | None, query: Tensor, heads: int, mask: SlotMask) -> Tensor | None:
    """The caller's mask for slots: (batch * heads, queries, slots). Their bias is in the padding."""
    if given is None:
        return None
    batch = query.shape[1]
    split = _looking(given).unflatten(0, (batch, heads)) if given.ndim == 3 else _looking(given)
    combined = mask._replace(biased=False).combine(split, query.dtype)
    return None if combined is None else combined.expand(batch, heads, -1, -1).flatten(0, 1)


def _looking(mask: Tensor) -> Tensor:
    """True where attention may look, as everywhere else in torch."""
    return ~mask if mask.dtype == torch.bool else mask
