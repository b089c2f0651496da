"""Attention over slots by a fused kernel that takes no mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from catome_core.attention.masks import attention_bias
from catome_core.planning import MergePlan

if TYPE_CHECKING:
    from jaxtyping import Float

# Fused kernels take head sizes that are a multiple of the one, and flash attention at most the other.
CHANNEL_MULTIPLE, MOST_CHANNELS = 8, 256
# exp of the one is 0; half precision has room for the other.
MASKED_SCORE, LOWEST_BIAS = -1000.0, -(2.0**15)


def attend_without_mask(
    query: Float[Tensor, "batch heads queries channels"],
    key: Float[Tensor, "batch heads slots channels"],
    value: Float[Tensor, "batch heads slots channels"],
    plan: MergePlan,
    *,
    proportional: bool = False,
) -> Float[Tensor, "batch heads queries channels"]:
    """Scaled dot-product attention that leaves padding out and can weigh every key by the tokens it stands for.

    What a mask would add to the scores of a key, `attention_bias`, is an inner product as well: of a channel that is 1
    in every query and bias / scale in the key. So the bias takes channels of its own, and flash attention and other
    kernels that refuse masks give the same result. On CPU a mask is faster: use `attention_bias` there.

    Args:
        query: Any float dtype, as key and value.
        key: Of the slots.
        value: Of the slots.
        plan: The plan that made the keys and values.
        proportional: Add log(size) to the scores.

    Returns:
        The attended values, in the dtype of `value`.

    Examples:
        >>> plan = MergePlan(torch.tensor([[0, 0, 1]]), torch.tensor([[2, 1, 0]]), torch.tensor([[0, 2, 0]]))
        >>> query, key, value = torch.randn(3, 1, 2, 3, 16).unbind()
        >>> bias = attention_bias(plan, dtype=torch.float32, proportional=True)
        >>> masked = scaled_dot_product_attention(query, key, value, attn_mask=bias)
        >>> torch.allclose(attend_without_mask(query, key, value, plan, proportional=True), masked, atol=1e-5)
        True
    """
    bias = attention_bias(plan, dtype=torch.float32, proportional=proportional)
    return attend_with_channels({"query": query, "key": key, "value": value}, bias)


def attend_with_channels(call: dict[str, Any], bias: Float[Tensor, "batch 1 1 slots"]) -> Tensor:
    """Fused attention with these arguments, and a bias of the keys in channels of its own.

    Args:
        call: Arguments of `scaled_dot_product_attention`, without a mask.
        bias: float32.

    Raises:
        ValueError: If the heads have no room for more channels.
    """
    query, key, value = (call[name] for name in ("query", "key", "value"))
    channels, scale = query.shape[-1], call.get("scale")
    scale = channels**-0.5 if scale is None else scale
    extra = 2 + -(channels + 2) % CHANNEL_MULTIPLE
    if channels + extra > MOST_CHANNELS:
        raise ValueError(
            f"the heads have {channels} channels, and a kernel without masks needs {extra} more for the sizes of slots "
            f"where it takes {MOST_CHANNELS}: use a kernel that takes a mask, or "
            "AdaptiveMerge(capacity=0.5, spare='fill') and proportional=False"
        )
    weights = _as_channels((bias.clamp_min(MASKED_SCORE) / scale).clamp_min(LOWEST_BIAS), key.dtype)
    wide: dict[str, Any] = {
        "query": pad(torch.cat([query, query.new_ones(*query.shape[:-1], 2)], -1), (0, extra - 2)),
        "key": pad(torch.cat([key, weights.expand(*key.shape[:-1], 2)], -1), (0, extra - 2)),
        "value": pad(value, (0, extra)),
        "scale": scale,
    }
    return scaled_dot_product_attention(**call | wide)[..., : value.shape[-1]]


def _as_channels(bias: Float[Tensor, "batch 1 1 slots"], dtype: torch.dtype) -> Float[Tensor, "batch 1 slots 2"]:
    """Two channels: what half precision rounds off in the first is in the second."""
    coarse = bias.to(dtype)
    fine = (bias - coarse.float()).to(dtype)
    return torch.stack([coarse, fine], -1).squeeze(2)
