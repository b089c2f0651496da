"""Attention to near keys and to far ones in calls of their own, whose results are joined: fewer keys are copied."""

from __future__ import annotations

from functools import reduce
from math import log, prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from catome_core.attention.channels import CHANNEL_MULTIPLE
from catome_core.attention.field import NearField
from catome_core.attention.tables import FieldIndex
from catome_core.constants import constant_when_compiled

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Int

JOINED_ON = ("cuda",)
"""Types of devices. On a CPU, a copy that its cache holds costs next to nothing."""
CHANNELS_OF_ALL_KERNELS = 128
"""All kernels take heads of this size."""
FLASH, EFFICIENT, CUDNN = (
    backend.value
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION)
)


def joins_on(call: dict[str, Any], field: NearField) -> int | None:
    """The backend of fused attention that serves this call part by part; None if there is none, or it needs more.

    A gradient would have to pass through the logarithm of the softmax's sum, and no kernel lets it.
    """
    query, key, value = args = [call[name] for name in ("query", "key", "value")]
    fits = (
        query.device.type in JOINED_ON
        and field.has_whole_cells
        # Of which cuDNN takes no single one.
        and min(part.keys for part in field.parts) > 1
        and call.get("attn_mask") is None
        and not call.get("dropout_p")
        # As many heads; only of tokens there may be other numbers.
        and query.shape[:2] == key.shape[:2]
        and query.shape[3] == key.shape[3]
        and key.shape == value.shape
        and query.dtype == key.dtype == value.dtype
        and query.shape[-1] % CHANNEL_MULTIPLE == 0
        and query.shape[-1] <= CHANNELS_OF_ALL_KERNELS
        and not (torch.is_grad_enabled() and any(one.requires_grad for one in args))
        and not torch.is_autocast_enabled(query.device.type)
    )
    backend = choose_backend(query.device, query.dtype) if fits else None
    return backend if backend in (FLASH, EFFICIENT, CUDNN) else None


@constant_when_compiled
def choose_backend(device: torch.device, dtype: torch.dtype) -> int:
    """The value of the `SDPBackend` that fused attention chooses by itself; a compiler sees a constant."""
    probe = torch.empty(1, 1, CHANNELS_OF_ALL_KERNELS, CHANNELS_OF_ALL_KERNELS, device=device, dtype=dtype)
    return torch.ops.aten._fused_sdp_choice.default(probe, probe, probe)


def attend_joined(
    call: dict[str, Any], anchors: Int[Tensor, "cells"], field: NearField, index: FieldIndex, backend: int
) -> Float[Tensor, "batch tiles*queries heads channels"]:
    """The attended values of all tiles: of their near keys, and of the far ones along each dimension.

    Far keys are copied once for all the tiles that share them, which are consecutive: the queries of such a group are
    those of one large tile.
    """
    query, key, value = (call[name].transpose(1, 2) for name in ("query", "key", "value"))
    queries = query.index_select(1, index.queries.flatten())
    far, size = anchors + field.lead, prod(field.grid.strides)
    outputs, sums = [], []
    for keys, tokens in [(index.near, 1), *((far[cells], size) for cells in index.beyond)]:
        copied = (rows.index_select(1, keys.flatten()) for rows in (key, value))
        grouped = [_split(rows, len(keys)) for rows in (queries, *copied)]
        output, logsumexp = _attend(grouped, call.get("scale"), backend)
        outputs.append(output.transpose(1, 2).reshape(queries.shape))
        sums.append(logsumexp.transpose(1, 2).reshape(queries.shape[:3]) + log(tokens))
    return join(outputs, sums)


def join(
    outputs: list[Float[Tensor, "batch n heads channels"]], sums: list[Float32[Tensor, "batch n heads"]]
) -> Float[Tensor, "batch n heads channels"]:
    """Attention to all keys, from that to some of them at a time and the logarithm of each softmax's sum.

    Examples:
        >>> query, key, value = torch.randn(3, 1, 5, 2, 8).unbind()
        >>> scores = torch.einsum("bnhc,bmhc->bnhm", query, key)
        >>> halves = [scores[..., :3], scores[..., 3:]]
        >>> values = [value[:, :3], value[:, 3:]]
        >>> parts = [torch.einsum("bnhm,bmhc->bnhc", *part) for part in zip([s.softmax(-1) for s in halves], values)]
        >>> whole = torch.einsum("bnhm,bmhc->bnhc", scores.softmax(-1), value)
        >>> torch.allclose(join(parts, [half.logsumexp(-1) for half in halves]), whole, atol=1e-6)
        True
    """
    # Not a softmax: inductor splits it as a reduction, and warns.
    whole = reduce(torch.logaddexp, sums)
    first, *others = (torch.stack(sums) - whole).exp().unsqueeze(-1).unbind()
    joined = outputs[0] * first
    for output, weight in zip(outputs[1:], others, strict=True):
        joined = joined.addcmul_(output, weight)
    return joined.to(outputs[0].dtype)


def _split(rows: Float[Tensor, "batch n heads channels"], groups: int) -> Float[Tensor, "b heads each channels"]:
    """Equally many consecutive rows for each group, which becomes a sample of its own."""
    return rows.reshape(-1, rows.shape[1] // groups, *rows.shape[2:]).transpose(1, 2)


def _attend(
    args: list[Float[Tensor, "b heads _ channels"]], scale: float | None, backend: int
) -> tuple[Float[Tensor, "b heads n channels"], Float32[Tensor, "b heads n"]]:
    """Fused attention of query, key and value, and the natural logarithm of the softmax's sum."""
    aten, query = torch.ops.aten, args[0]
    if query.device.type == "cpu":
        output, sums, *_ = aten._scaled_dot_product_flash_attention_for_cpu.default(*args, scale=scale)
    elif backend == CUDNN:
        output, sums, *_ = aten._scaled_dot_product_cudnn_attention.default(*args, None, True, scale=scale)
    elif backend == FLASH:
        output, sums, *_ = aten._scaled_dot_product_flash_attention.default(*args, scale=scale)
    else:
        output, sums, *_ = aten._scaled_dot_product_efficient_attention.default(*args, None, True, scale=scale)
    # Some kernels pad the queries, and cuDNN has a last dimension of 1.
    return output, sums[:, :, : query.shape[2]].reshape(query.shape[:3])
