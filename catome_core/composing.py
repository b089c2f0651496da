"""Merging what has merged before, as progressive merging does from block to block."""

from __future__ import annotations

import torch
from torch import Tensor

from catome_core.merging import merge
from catome_core.planning import MergePlan, find_route


def compose(first: MergePlan, then: MergePlan) -> MergePlan:
    """The plan that takes tokens where `first`, and then `then` on its slots, takes them; without padding in either.

    Examples:
        >>> import torch
        >>> first = MergePlan(torch.tensor([[0, 0, 1, 2]]), torch.tensor([[2, 1, 1]]), torch.tensor([[1, 2, 3]]))
        >>> then = MergePlan(torch.tensor([[0, 1, 0]]), torch.tensor([[2, 1]]), torch.tensor([[0, 1]]))
        >>> compose(first, then)[:3]
        (tensor([[0, 0, 1, 0]]), tensor([[3, 1]]), tensor([[1, 2]]))
    """
    size = then.size.new_zeros(then.size.shape).scatter_add(1, then.slot, first.size)
    return MergePlan(then.slot.gather(1, first.slot), size, first.anchor.gather(1, then.anchor))


def in_order(plan: MergePlan) -> MergePlan:
    """The same merge with its slots in the order of their anchors: what was side by side stays so; without padding.

    Examples:
        >>> import torch
        >>> plan = MergePlan(torch.tensor([[0, 2, 1, 0]]), torch.tensor([[2, 1, 1]]), torch.tensor([[0, 2, 1]]))
        >>> in_order(plan)[:3]
        (tensor([[0, 1, 2, 0]]), tensor([[2, 1, 1]]), tensor([[0, 1, 2]]))
    """
    anchors_so_far = torch.zeros_like(plan.slot).scatter(1, plan.anchor, 1).cumsum(1)
    place = anchors_so_far.gather(1, plan.anchor) - 1
    size, anchor = (torch.empty_like(part).scatter(1, place, part) for part in (plan.size, plan.anchor))
    ordered = MergePlan(place.gather(1, plan.slot), size, anchor)
    return ordered._replace(route=find_route(ordered, len(plan.slot)))


def merge_weighted(slots: Tensor, size: Tensor, plan: MergePlan) -> Tensor:
    """`merge` of slots that stand for several tokens each: a mean over the tokens; a kept slot comes out bit-exact.

    Args:
        slots: (batch, slots, channels).
        size: int64 (batch, slots), tokens that each stands for.
        plan: For these slots.

    Returns:
        (batch, fewer slots, channels), dtype of `slots`.

    Examples:
        >>> import torch
        >>> plan = MergePlan(torch.tensor([[0, 0]]), torch.tensor([[2]]), torch.tensor([[0]]))
        >>> merge_weighted(torch.tensor([[[1.0], [5.0]]]), torch.tensor([[3, 1]]), plan)
        tensor([[[2.]]])
    """
    total = size.new_zeros(plan.size.shape).scatter_add(1, plan.slot, size)
    # A mean of n weighted rows is a sum of rows weighted by 1 / n; in this order, a kept slot's weight is exactly 1.
    weight = size * plan.size.gather(1, plan.slot) / total.gather(1, plan.slot)
    return merge(slots * weight[..., None], plan).to(slots.dtype)
