"""Ways to weight a key by the number of tokens it stands for, with their cost and their error."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention

from catome_bench.measure.contender import MakeContender
from catome_bench.measure.race import race
from catome_bench.measure.rows import Row
from catome_bench.races.contenders import fixed_policy
from catome_bench.races.operations import make_operation
from catome_core import MergePlan, TokenGrid, attend_without_mask, attention_bias

HEAD_SIZES = (40, 64, 72, 128)
PLAIN = "no bias"
SEGMENTS = "variable length (padding only)"


def race_kernels(
    width: int, grid: TokenGrid, heads: int, batch: int, mode: str, *, repeats: int, device: str, dtype: torch.dtype
) -> list[Row]:
    """Proportional self-attention over half the tokens of a grid, in every way; speed-up is over the plain kernel.

    The error is the largest difference from float64 in the first sample and head: from attention with log(size) on
    the keys, or from plain attention for a kernel without bias.
    """
    plan = fixed_policy()(torch.randn(batch, grid.tokens, 64, device=device), grid)
    query, key, value = torch.randn(3, batch, heads, plan.size.shape[1], width, device=device, dtype=dtype)
    contenders = kernel_contenders(query, key, value, plan, mode)
    references = {proportional: exact(query, key, value, plan, proportional) for proportional in (False, True)}

    def check(name: str, result: Tensor) -> float:
        reference = references[name not in (PLAIN, SEGMENTS, "unpatched")]
        return (result[0, 0].double() - reference).abs().max().item()

    rows = race(contenders, mode, repeats=repeats, device=device, check=check)
    for row in rows:
        row.subject = PLAIN if row.subject == "unpatched" else row.subject
    return rows


def kernel_contenders(
    query: Tensor, key: Tensor, value: Tensor, plan: MergePlan, mode: str
) -> dict[str, MakeContender]:
    """Every way that this mode and device support, by name; the plain kernel is "unpatched"."""
    bias = attention_bias(plan, dtype=query.dtype, proportional=True)
    contenders = {
        "unpatched": make_operation(F.scaled_dot_product_attention, query, key, value),
        "additive mask": make_operation(_masked, query, key, value, bias),
        "one more channel": make_operation(_one_more_channel, query, key, value, bias),
        "more channels, a multiple of 8": make_operation(partial(_channels, plan), query, key, value),
    }
    if mode != "eager":  # in eager mode it would build the whole matrix
        contenders["FlexAttention"] = make_operation(_flex, query, key, value, bias[:, 0, 0])
    if query.is_cuda and mode == "eager":  # it takes no bias, but it can leave padding out
        contenders[SEGMENTS] = make_operation(_segments, query, key, value, plan.size)
    return contenders


def exact(query: Tensor, key: Tensor, value: Tensor, plan: MergePlan, proportional: bool) -> Tensor:
    """The first sample and head of attention in float64: (queries, channels)."""
    query, key, value = (part[0, 0].double() for part in (query, key, value))
    scores = query @ key.T * query.shape[-1] ** -0.5
    weights = plan.size[0].double() if proportional else (plan.size[0] > 0).double()
    return (scores + weights.log()).softmax(-1) @ value


def _masked(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def _one_more_channel(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    width = query.shape[-1]
    scale = width**-0.5
    column = (bias / scale).transpose(-1, -2).expand(*key.shape[:-1], 1)
    query, key = F.pad(query, (0, 1), value=1.0), torch.cat([key, column], -1)
    return F.scaled_dot_product_attention(query, key, F.pad(value, (0, 1)), scale=scale)[..., :width]


def _channels(plan: MergePlan, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return attend_without_mask(query, key, value, plan, proportional=True)


def _flex(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Any:
    def add_bias(score: Tensor, sample: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return score + bias[sample, column]

    return flex_attention(query, key, value, score_mod=add_bias)


def _segments(query: Tensor, key: Tensor, value: Tensor, size: Tensor) -> Tensor:
    # Not in every version of torch that the package runs with.
    from torch.nn.attention.varlen import varlen_attn

    batch, _, length, _ = key.shape
    starts = torch.arange(batch + 1, device=key.device, dtype=torch.int32) * length
    real = (size > 0).sum(-1, dtype=torch.int32).expand(batch)
    query, key, value = (part.transpose(1, 2).flatten(0, 1) for part in (query, key, value))
    result = varlen_attn(query, key, value, starts, starts, length, length, seqused_k=real)
    assert isinstance(result, Tensor)  # a tuple only where the log-sum-exp is requested
    return result.unflatten(0, (batch, length)).transpose(1, 2)
