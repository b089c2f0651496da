"""Attention over slots by a fused kernel that takes no mask."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from catome_core.merging import attention_bias
from catome_core.planning import MergePlan

# Head sizes that fused kernels take as they are.
MULTIPLE = 8
# exp of it is 0, and it is far from what half precision can hold.
NOTHING = -1000.0


def attend_without_mask(
    query: Tensor, key: Tensor, value: Tensor, plan: MergePlan, *, proportional: bool = False
) -> Tensor:
    """Scaled dot-product attention that sees no padding and, if asked, weighs every key by the tokens it stands for.

    What a mask would add to the scores of a key, `attention_bias`, is an inner product as well: of a channel that is 1
    in every query and bias / scale in the key. So the bias travels in channels of its own, and flash attention and
    other kernels that refuse masks give the same result. On CPU a mask is faster: use `attention_bias` there.

    Args:
        query: (batch, heads, queries, channels).
        key: (batch, heads, slots, channels).
        value: (batch, heads, slots, channels).
        plan: The plan that made the keys and values.
        proportional: Add log(size) to the scores.

    Returns:
        (batch, heads, queries, channels).

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
    spare = 2 + -(channels + 2) % MULTIPLE
    bias = attention_bias(plan, dtype=torch.float32, proportional=proportional).clamp_min(NOTHING) / scale
    # In two channels, what half precision rounds off in the one is in the other.
    coarse = bias.to(key.dtype)
    fine = (bias - coarse.float()).to(key.dtype)
    weights = torch.stack([coarse, fine], -1).squeeze(2).expand(*key.shape[:-1], 2)
    wide_key = pad(torch.cat([key, weights], -1), (0, spare - 2))
    wide_query = pad(torch.cat([query, query.new_ones(*query.shape[:-1], 2)], -1), (0, spare - 2))
    result = scaled_dot_product_attention(wide_query, wide_key, pad(value, (0, spare)), scale=scale)
    return result[..., :channels]
