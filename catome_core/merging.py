"""Applying a plan: tokens to slots and back, and what attention must know of the slots."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from catome_core.planning import MergePlan, Route, find_route


def merge(tokens: Tensor, plan: MergePlan) -> Tensor:
    """Average the tokens of every slot.

    Sums are accumulated in float32 at least; a kept token comes out bit-exact, padding comes out zero. Differentiable.

    Args:
        tokens: (batch, tokens, channels).
        plan: For these tokens; a plan of batch 1 serves any batch.

    Returns:
        (batch, slots, channels), dtype of `tokens`.

    Raises:
        ValueError: If the plan was made for another number of tokens or another batch.

    Examples:
        >>> plan = MergePlan(torch.tensor([[0, 0, 1]]), torch.tensor([[2, 1]]), torch.tensor([[0, 2]]))
        >>> merge(torch.tensor([[[1.0], [3.0], [5.0]]]), plan)
        tensor([[[2.],
                 [5.]]])
    """
    _check(tokens, plan, plan.slot.shape[1], "tokens")
    route = _route(tokens, plan)
    flat = tokens.reshape(-1, tokens.shape[2])
    if flat.device.type == "cpu":
        # There, half precision would be rounded before the division.
        flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    # One pass over the tokens, summed in the order of the route: no atomics, the same bits from run to run.
    means = embedding_bag(route.rows, flat, route.starts, mode="mean")
    return means.view(len(tokens), plan.size.shape[1], -1).to(tokens.dtype)


def unmerge(merged: Tensor, plan: MergePlan) -> Tensor:
    """Copy every slot back to the tokens it was made of (paper, III-A).

    Args:
        merged: (batch, slots, channels).
        plan: The plan of the merge.

    Returns:
        (batch, tokens, channels).

    Raises:
        ValueError: If the plan has another number of slots or another batch.

    Examples:
        >>> plan = MergePlan(torch.tensor([[0, 0, 1]]), torch.tensor([[2, 1]]), torch.tensor([[0, 2]]))
        >>> unmerge(torch.tensor([[[2.0], [5.0]]]), plan).flatten()
        tensor([2., 2., 5.])
    """
    _check(merged, plan, plan.size.shape[1], "merged")
    back = _route(merged, plan).back
    return merged.reshape(-1, merged.shape[2]).index_select(0, back).view(len(merged), plan.slot.shape[1], -1)


def gather_anchors(rows: Tensor, plan: MergePlan) -> Tensor:
    """Pick what belongs to positions (rotary rows, embeddings, modulation) for every slot: that of its anchor.

    Args:
        rows: (batch or 1, tokens, ...).
        plan: For these tokens.

    Returns:
        (batch, slots, ...); padding holds the row of token 0.

    Raises:
        ValueError: If the plan was made for another number of tokens or another batch.

    Examples:
        >>> plan = MergePlan(torch.tensor([[0, 0, 1]]), torch.tensor([[2, 1]]), torch.tensor([[0, 2]]))
        >>> gather_anchors(torch.tensor([[10, 11, 12]]), plan)
        tensor([[10, 12]])
    """
    if len(rows) == 1:
        rows = rows.expand(len(plan.slot), *rows.shape[1:])
    _check(rows, plan, plan.slot.shape[1], "rows")
    batch = torch.arange(len(rows), device=rows.device)[:, None]
    return rows[batch, plan.anchor]


def attention_bias(plan: MergePlan, *, dtype: torch.dtype, proportional: bool = False) -> Tensor:
    """What is added to the attention scores of every key: minus infinity on padding, so that nothing attends to it.

    Args:
        plan: The plan that made the keys.
        dtype: Of the result: that of the queries.
        proportional: Add log(size), so that a key that stands for four tokens weighs four.

    Returns:
        (batch, 1, 1, slots): a mask for `scaled_dot_product_attention`, broadcast over heads and queries.

    Examples:
        >>> plan = MergePlan(torch.tensor([[0, 0]]), torch.tensor([[2, 0]]), torch.tensor([[0, 0]]))
        >>> attention_bias(plan, dtype=torch.float32, proportional=True)
        tensor([[[[0.6931,   -inf]]]])
    """
    size = plan.size[:, None, None]
    # In float32 first: half precision would round large slots before the logarithm.
    return (size if proportional else size.clamp_max(1)).float().log().to(dtype)


def _route(values: Tensor, plan: MergePlan) -> Route:
    """The plan's own, if it was made for as many samples."""
    if plan.route is not None and len(plan.route.back) == len(values) * plan.slot.shape[1]:
        return plan.route
    return find_route(plan, len(values))


def _check(values: Tensor, plan: MergePlan, length: int, name: str) -> None:
    if torch.compiler.is_compiling():
        return
    if values.ndim < 2 or values.shape[1] != length or len(plan.slot) not in (1, len(values)):
        batch, tokens = plan.slot.shape
        raise ValueError(
            f"{name} has shape {tuple(values.shape)}; the plan is for batch {batch}, {tokens} tokens and "
            f"{plan.size.shape[1]} slots: make a plan for these tokens"
        )
