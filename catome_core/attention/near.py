"""Attention to near keys one by one and to one far key of every cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from catome_core.attention.channels import attend_with_channels
from catome_core.attention.field import NearField
from catome_core.attention.joined import attend_joined, joins_on
from catome_core.attention.masks import refuse_causal, to_additive
from catome_core.attention.tables import FieldIndex, index_field

if TYPE_CHECKING:
    from jaxtyping import Float, Int

CACHED_BYTES = 4 * 2**20
"""The most bytes of the tiles' keys and values that are gathered at a time on a CPU. All of them would not fit the
cache, and be memory that the system hands out anew in every call."""


def attend_near_and_far(
    call: dict[str, Any], anchors: Int[Tensor, "cells"], field: NearField, *, takes_mask: bool = True
) -> Float[Tensor, "batch heads tokens channels"]:
    """Fused attention in which every query sees near tokens one by one, and of each cell beyond one that counts for it.

    Nothing is matched, and no shape depends on the data: the keys of each tile of queries are gathered, and tiles are
    samples of a batch, so that one call serves all; on a CPU, each of a few calls as many as the cache holds. On a GPU,
    without gradients, a mask or partial cells, far keys are gathered once for all tiles that share them, and attended
    to in calls of their own, one for each dimension (see `attend_joined`). Where the near field covers the grid, it is
    plain attention.

    Args:
        call: Arguments of `scaled_dot_product_attention` by name; query, key and value have four dimensions. Queries
            may be those of the grid alone. A mask may have one row for all queries or one for each; far keys have the
            entries of their anchors.
        anchors: The raster position (int64) in the grid of one token of every cell, as from `choose_destinations`.
        field: Which keys are near, and where the grid's tokens are in the sequence.
        takes_mask: Whether the kernel may have a mask. False: what each key counts for is in channels of its own.

    Returns:
        The attended values, as many as there are queries. Differentiable.

    Raises:
        ValueError: If attention is causal, or the shape of an argument does not fit the field.

    Examples:
        >>> from catome_core import TokenGrid, choose_destinations
        >>> grid = TokenGrid((32, 32))
        >>> query, key, value = torch.randn(3, 1, 2, 1024, 8).unbind()
        >>> call = {"query": query, "key": key, "value": value}
        >>> attend_near_and_far(call, choose_destinations(grid, 3), NearField(grid, near=1)).shape
        torch.Size([1, 2, 1024, 8])
    """
    refuse_causal(call)
    _check(call, anchors, field)
    if field.covers_grid:
        return scaled_dot_product_attention(**call)
    query = call["query"]
    index = index_field(field, query, grid_alone=query.shape[2] < field.tokens)
    backend = joins_on(call, field) if takes_mask else None
    if backend is None:
        attended = _attend_tiles(call, anchors, index, field.lead, takes_mask)
    else:
        attended = attend_joined(call, anchors, field, index, backend)
    if len(index.outside):
        attended = torch.cat([_attend_outside(call, index.outside).transpose(1, 2), attended], 1)
    return attended.index_select(1, index.inverse).transpose(1, 2)


def _attend_tiles(
    call: dict[str, Any], anchors: Tensor, index: FieldIndex, lead: int, takes_mask: bool
) -> Float[Tensor, "batch tiles*queries heads channels"]:
    keys = torch.cat([index.near, anchors[index.far] + lead], 1)
    bias, shared = index.bias, len(index.bias) == 1
    parts = [
        _attend_some_tiles(call, index.queries[part], keys[part], bias if shared else bias[part], takes_mask)
        for part in _parts(call["key"], keys)
    ]
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def _parts(key: Tensor, keys: Int[Tensor, "tiles keys"]) -> list[slice]:
    """The tiles of each call of the kernel: of one call all, or on a CPU as many as the cache holds."""
    if key.device.type != "cpu" or torch.compiler.is_compiling():
        return [slice(None)]
    tile = 2 * keys.shape[1] * key[:, :, :1].numel() * key.element_size()
    some = max(1, CACHED_BYTES // max(1, tile))
    return [slice(first, first + some) for first in range(0, len(keys), some)]


def _attend_some_tiles(
    call: dict[str, Any],
    queries: Int[Tensor, "tiles n"],
    keys: Int[Tensor, "tiles keys"],
    bias: Float[Tensor, "1|tiles 1 1 keys"],
    takes_mask: bool,
) -> Float[Tensor, "batch tiles*n heads channels"]:
    query, mask = call["query"], call.get("attn_mask")
    bias = bias if len(bias) == 1 else bias.repeat(len(query), 1, 1, 1)
    indices = {"query": queries, "key": keys, "value": keys}
    tiled: dict[str, Any] = call | {name: _gather(call[name], own) for name, own in indices.items()}
    if mask is not None:
        bias = bias + _gather_mask(to_additive(mask, query.dtype), queries, keys, call["key"])
    if takes_mask or bias.shape[1:3] != (1, 1):
        tiled["attn_mask"] = bias.to(query.dtype)
        attended = scaled_dot_product_attention(**tiled)
    else:
        attended = attend_with_channels(tiled | {"attn_mask": None}, bias)
    return attended.transpose(1, 2).unflatten(0, (len(query), -1)).flatten(1, 2)


def _attend_outside(call: dict[str, Any], outside: Int[Tensor, "outside"]) -> Tensor:
    """Tokens of no grid see all tokens."""
    mask = call.get("attn_mask")
    if mask is not None and mask.shape[-2] > 1:
        mask = mask.index_select(-2, outside)
    asked: dict[str, Any] = call | {"query": call["query"].index_select(2, outside), "attn_mask": mask}
    return scaled_dot_product_attention(**asked)


def _gather(
    rows: Float[Tensor, "batch heads tokens channels"], index: Int[Tensor, "tiles n"]
) -> Float[Tensor, "batch*tiles heads n channels"]:
    """By token, since models have the heads of a token side by side in memory."""
    gathered = rows.transpose(1, 2).index_select(1, index.flatten())
    return gathered.unflatten(1, index.shape).flatten(0, 1).transpose(1, 2)


def _gather_mask(
    mask: Float[Tensor, "..."], queries: Int[Tensor, "tiles n"], keys: Int[Tensor, "tiles keys"], key: Tensor
) -> Float[Tensor, "batch*tiles heads|1 n|1 keys"]:
    """The caller's mask at the queries and keys of every tile."""
    mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape).expand(len(key), -1, -1, key.shape[2])
    if mask.shape[2] == 1:
        tiled = mask[:, :, None].transpose(1, 2)
    else:
        tiled = mask.index_select(2, queries.flatten()).unflatten(2, queries.shape).transpose(1, 2)
    return torch.take_along_dim(tiled, keys[None, :, None, None], -1).flatten(0, 1)


def _check(call: dict[str, Any], anchors: Tensor, field: NearField) -> None:
    tokens, cells = field.tokens, field.grid.destinations
    for name in ("query", "key", "value"):
        lengths = (tokens, field.grid.area) if name == "query" else (tokens,)
        if call[name].ndim != 4 or call[name].shape[2] not in lengths:
            raise ValueError(
                f"{name} has shape {tuple(call[name].shape)}; expected (batch, heads, {tokens}, channels) for {field}: "
                "a near field is for self-attention, with all tokens in the order of the sequence; queries may be "
                f"those of the grid alone, here {field.grid.area}"
            )
    if anchors.shape != (cells,):
        raise ValueError(
            f"anchors has shape {tuple(anchors.shape)}; expected ({cells},), a token of every cell of {field.grid}"
        )
    mask, queries = call.get("attn_mask"), call["query"].shape[2]
    if mask is not None and (mask.ndim < 2 or mask.shape[-2] not in (1, queries) or mask.shape[-1] not in (1, tokens)):
        raise ValueError(
            f"attn_mask has shape {tuple(mask.shape)}; expected one row or one for each of the {queries} queries, "
            f"and a column for each of {tokens} tokens: leave the mask out, or attend without a near field"
        )
