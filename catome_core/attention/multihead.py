"""Slots in `nn.MultiheadAttention`, where the sequence is the first dimension and True in a mask hides a key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from einops import rearrange
from torch import Tensor

from catome_core.attention.masks import SlotMask
from catome_core.merging import gather_anchors, merge
from catome_core.planning import MergePlan

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

Call = tuple[tuple[Any, ...], dict[str, Any]]
Values = Literal["mean", "anchor"]


def rewrite_multihead(args: tuple[Any, ...], kwargs: dict[str, Any], mask: SlotMask, values: Values = "mean") -> Call:
    """The arguments of `torch.nn.functional.multi_head_attention_forward`, rewritten for slots.

    Args:
        args: Query, key and value (length, batch, channels), the number of channels and of heads, then weights.
        kwargs: Among others `key_padding_mask` (batch, keys) and `attn_mask` (queries, keys) or
            (batch * heads, queries, keys), bool or additive.
        mask: Of the merge.
        values: Where keys merge, the value of a slot: the mean of its tokens' values, or that of its anchor.
    """
    query, _, _, _, heads, *_ = args
    masks = {
        "key_padding_mask": _padding_mask(kwargs.get("key_padding_mask"), query, mask),
        "attn_mask": _attention_mask(kwargs.get("attn_mask"), query, heads, mask),
    }
    return (args if mask.merged_queries else _merge_keys(args, mask.plan, values)), kwargs | masks


def _merge_keys(args: tuple[Any, ...], plan: MergePlan, values: Values) -> tuple[Any, ...]:
    query, key, value, *rest = args
    key, value = (rearrange(one, "n b c -> b n c") for one in (key, value))
    key, value = gather_anchors(key, plan), gather_anchors(value, plan) if values == "anchor" else merge(value, plan)
    return (query, rearrange(key, "b n c -> n b c"), rearrange(value, "b n c -> n b c"), *rest)


def _padding_mask(
    given: Shaped[Tensor, "batch keys"] | None, query: Tensor, mask: SlotMask
) -> Float[Tensor, "batch slots"] | None:
    """The caller's padding and the bias of slots."""
    per_key = None if given is None else rearrange(_invert(given), "b n -> b 1 1 n")
    combined = mask.for_slots(per_key, query.dtype)
    return None if combined is None else combined[:, 0, 0].expand(query.shape[1], -1)


def _attention_mask(
    given: Shaped[Tensor, "..."] | None, query: Tensor, heads: int, mask: SlotMask
) -> Float[Tensor, "batch*heads queries slots"] | None:
    """The caller's mask for slots, without their bias, which is in the padding mask."""
    if given is None:
        return None
    batch = query.shape[1]
    shown = _invert(given)
    if shown.ndim == 3:
        shown = rearrange(shown, "(b h) q k -> b h q k", h=heads)
    combined = mask._replace(needs_bias=False).for_slots(shown, query.dtype)
    return None if combined is None else rearrange(combined.expand(batch, heads, -1, -1), "b h q k -> (b h) q k")


def _invert(mask: Tensor) -> Tensor:
    """A bool mask that is True where attention may look, as everywhere else in torch; an additive one as it is."""
    return ~mask if mask.dtype == torch.bool else mask
