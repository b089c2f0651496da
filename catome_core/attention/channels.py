"""Attention over slots by a fused kernel that takes no mask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from catome_core.attention.masks import attention_bias
from catome_core.planning import MergePlan

if TYPE_CHECKING:
    from jaxtyping import Float

# Fused kernels take head sizes that are a multiple of it.
CHANNEL_MULTIPLE = 8
# exp of it is 0, and it is far from the limits of half precision.
MASKED_SCORE = -1000.0


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
    channels = query.shape[-1]
    scale = channels**-0.5
    extra = 2 + -(channels + 2) % CHANNEL_MULTIPLE
    bias = attention_bias(plan, dtype=torch.float32, proportional=proportional).clamp_min(MASKED_SCORE) / scale
    # Two channels: what half precision rounds off in the first is in the second.
    coarse = bias.to(key.dtype)
    fine = (bias - coarse.float()).to(key.dtype)
    weights = torch.stack([coarse, fine], -1).squeeze(2).expand(*key.shape[:-1], 2)
    wide_key = pad(torch.cat([key, weights], -1), (0, extra - 2))
    wide_query = pad(torch.cat([query, query.new_ones(*query.shape[:-1], 2)], -1), (0, extra - 2))
    result = scaled_dot_product_attention(wide_query, wide_key, pad(value, (0, extra)), scale=scale)
    return result[..., :channels]
