"""Applying a plan: tokens to slots and back, and what belongs to tokens to what belongs to slots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from catome_core.derivatives import CopyBack, SlotMeans
from catome_core.planning import MergePlan, PlanIndex, index_plan

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped


def merge(tokens: Float[Tensor, "batch tokens channels"], plan: MergePlan) -> Float[Tensor, "batch slots channels"]:
    """Average the tokens of every slot. `unmerge` copies the slots back to the tokens.

    Sums are accumulated in float32 at least. A kept token comes out bit-exact, except that -0.0 becomes 0.0, to which
    it is equal; padding comes out zero. Differentiable any number of times, also in forward mode.

    Args:
        tokens: Any float dtype.
        plan: For these tokens; a plan of batch 1 serves any batch.

    Returns:
        The slots, in the dtype of `tokens`.

    Raises:
        TypeError: If the tokens are not floating point.
        ValueError: If the plan was made for another number of tokens or another batch.

    Examples:
        >>> plan = MergePlan(torch.tensor([[0, 0, 1]]), torch.tensor([[2, 1]]), torch.tensor([[0, 2]]))
        >>> merged = merge(torch.tensor([[[1.0], [3.0], [5.0]]]), plan)
        >>> merged
        tensor([[[2.],
                 [5.]]])
        >>> unmerge(merged, plan).flatten()
        tensor([2., 2., 5.])
    """
    if not tokens.is_floating_point() and not torch.compiler.is_compiling():
        raise TypeError(
            f"tokens has dtype {tokens.dtype}; expected floating point, since slots are means: tokens.float()"
        )
    _check_rows(tokens, plan, plan.slot.shape[1], "tokens")
    index, flat = _index_for(tokens, plan), tokens.flatten(0, 1)
    if tokens.device.type == "cpu":
        # There, half precision would be rounded before the division.
        flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    # One pass over the tokens, summed in the order of the index: no atomics, the same bits from run to run.
    if _is_recorded():
        means = SlotMeans.apply(flat, *index, plan.size)
    else:
        means = embedding_bag(index.rows, flat, index.offsets, mode="mean")
    return means.view(len(tokens), plan.size.shape[1], tokens.shape[2]).to(tokens.dtype)


def unmerge(merged: Shaped[Tensor, "batch slots channels"], plan: MergePlan) -> Shaped[Tensor, "batch tokens channels"]:
    """Copy every slot back to the tokens that `merge` averaged into it (paper, III-A).

    Args:
        merged: The slots.
        plan: The plan of the merge.

    Returns:
        For every token the row of its slot.

    Raises:
        ValueError: If the plan has another number of slots or another batch.

    Examples:
        >>> plan = MergePlan(torch.tensor([[0, 0, 1]]), torch.tensor([[2, 1]]), torch.tensor([[0, 2]]))
        >>> unmerge(torch.tensor([[[2.0], [5.0]]]), plan).flatten()
        tensor([2., 2., 5.])
    """
    _check_rows(merged, plan, plan.size.shape[1], "merged")
    index, flat = _index_for(merged, plan), merged.flatten(0, 1)
    copies = CopyBack.apply(flat, *index, plan.size) if _is_recorded() else flat.index_select(0, index.inverse)
    return copies.view(len(merged), plan.slot.shape[1], merged.shape[2])


def gather_anchors(rows: Tensor, plan: MergePlan, dim: int = 1) -> Tensor:
    """Pick the row of every slot's anchor from what belongs to positions (rotary rows, embeddings, modulation, masks).

    Args:
        rows: Any dtype; one row for each of the plan's tokens along `dim`. For a plan of several samples, dimension 0
            is the batch, of which a batch of 1 serves every sample. A plan of batch 1 serves any rows.
        plan: For these tokens.
        dim: The dimension of the tokens.

    Returns:
        `rows` with as many rows along `dim` as there are slots; padding holds the row of the padding's anchor.

    Raises:
        ValueError: If the plan was made for another number of tokens or another batch, or if `dim` is 0 although
            the plan differs between samples.

    Examples:
        >>> plan = MergePlan(torch.tensor([[0, 0, 1]]), torch.tensor([[2, 1]]), torch.tensor([[0, 2]]))
        >>> gather_anchors(torch.tensor([[10, 11, 12]]), plan)
        tensor([[10, 12]])
        >>> gather_anchors(torch.tensor([10, 11, 12]), plan, dim=0)
        tensor([10, 12])
    """
    dim = dim if dim >= 0 else dim + rows.ndim
    if len(plan.slot) == 1:
        _check(rows, plan, plan.slot.shape[1], "rows", dim)
        return rows.index_select(dim, plan.anchor[0])
    _check_batch_dimension(rows, plan, dim)
    if len(rows) == 1:
        rows = rows.expand(len(plan.slot), *rows.shape[1:])
    _check(rows, plan, plan.slot.shape[1], "rows", dim)
    sample = torch.arange(len(rows), device=rows.device)[:, None]
    return rows.movedim(dim, 1)[sample, plan.anchor].movedim(1, dim)


def merge_weighted(
    slots: Float[Tensor, "batch slots channels"], size: Int[Tensor, "batch slots"], plan: MergePlan
) -> Float[Tensor, "batch fewer_slots channels"]:
    """`merge` of slots that stand for several tokens each: a mean over the tokens; a kept slot comes out bit-exact.

    Args:
        slots: Any float dtype.
        size: Number of tokens (int64) that each slot stands for; batch 1 serves any.
        plan: For these slots, and without padding; batch 1 serves any.

    Returns:
        The slots of slots, in the dtype of `slots`.

    Examples:
        >>> plan = MergePlan(torch.tensor([[0, 0]]), torch.tensor([[2]]), torch.tensor([[0]]))
        >>> merge_weighted(torch.tensor([[[1.0], [5.0]]]), torch.tensor([[3, 1]]), plan)
        tensor([[[2.]]])
    """
    (batch,) = torch.broadcast_shapes(size.shape[:1], plan.slot.shape[:1])
    size, slot, count = (part.expand(batch, -1) for part in (size, plan.slot, plan.size))
    total = torch.zeros_like(count).scatter_add(1, slot, size)
    # A mean of n weighted rows is a sum of rows weighted by 1 / n; in this order, a kept slot's weight is exactly 1.
    weight = size * count.gather(1, slot) / total.gather(1, slot)
    return merge(slots * weight[..., None], plan).to(slots.dtype)


def _index_for(values: Tensor, plan: MergePlan) -> PlanIndex:
    """The plan's own index, if it was made for this batch."""
    index = plan.route
    if index is not None and len(index.inverse) == len(values) * plan.slot.shape[1]:
        return index
    return index_plan(plan, len(values))


def _is_recorded() -> bool:
    """Whether gradients may be; the compiler derives its own from the plain operations."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _check_rows(values: Tensor, plan: MergePlan, length: int, name: str) -> None:
    if values.ndim != 3 and not torch.compiler.is_compiling():
        raise ValueError(
            f"{name} has shape {tuple(values.shape)}; expected (batch, {length}, channels): flatten heads or the like "
            "into the channels"
        )
    _check(values, plan, length, name)


def _check(values: Tensor, plan: MergePlan, length: int, name: str, dim: int = 1) -> None:
    if torch.compiler.is_compiling():
        return
    fits = 0 <= dim < values.ndim and values.shape[dim] == length
    if not fits or len(plan.slot) not in (1, len(values)):
        batch, tokens = plan.slot.shape
        along = "" if dim == 1 else f", with the tokens along dimension {dim}"
        raise ValueError(
            f"{name} has shape {tuple(values.shape)}{along}; the plan is for batch {batch}, {tokens} tokens and "
            f"{plan.size.shape[1]} slots: make a plan for these tokens"
        )


def _check_batch_dimension(rows: Tensor, plan: MergePlan, dim: int) -> None:
    if dim == 0 and not torch.compiler.is_compiling():
        raise ValueError(
            f"rows has shape {tuple(rows.shape)} and no batch dimension, but the plan differs between the "
            f"{len(plan.slot)} samples: share one plan, AdaptiveMerge(shared=True), or give rows a batch dimension"
        )
