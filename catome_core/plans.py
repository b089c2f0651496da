"""From plans to plans: of a longer sequence, of two merges in a row, and with slots in another order."""

from __future__ import annotations

import torch
from torch import Tensor

from catome_core.planning import MergePlan, PlanIndex, index_plan


def extend(plan: MergePlan, front: int = 0, back: int = 0) -> MergePlan:
    """The plan of a longer sequence, in which every token that the plan does not cover is a slot of size one.

    Such tokens are text, class tokens or reference images around the ones that merge. The index, if the plan has one,
    is extended for the batch that it was made for.

    Args:
        plan: For the tokens in the middle.
        front: Number of tokens in front of them.
        back: Number of tokens behind them.

    Returns:
        The longer plan; `plan` itself if there are no other tokens.

    Examples:
        >>> from catome_core import merge, unmerge
        >>> plan = MergePlan(torch.tensor([[0, 0, 1]]), torch.tensor([[2, 1]]), torch.tensor([[0, 2]]))
        >>> longer = extend(plan, front=1, back=1)
        >>> longer.slot.tolist(), longer.size.tolist(), longer.anchor.tolist()
        ([[0, 1, 1, 2, 3]], [[1, 2, 1, 1]], [[0, 1, 3, 4]])
        >>> tokens = torch.tensor([[[9.0], [1.0], [3.0], [5.0], [7.0]]])
        >>> unmerge(merge(tokens, longer), longer).flatten()
        tensor([9., 2., 2., 5., 7.])
    """
    if not front and not back:
        return plan
    tokens, slots = plan.slot.shape[1], plan.size.shape[1]
    one = plan.size.new_ones(1).expand(len(plan.size), -1)
    size = torch.cat([one.expand(-1, front), plan.size, one.expand(-1, back)], 1)
    index = None if plan.route is None else _extend_index(plan.route, tokens, slots, front, back)
    slot = _surround(plan.slot, front, back, slots)
    return MergePlan(slot, size, _surround(plan.anchor, front, back, tokens), index)


def compose(first: MergePlan, second: MergePlan) -> MergePlan:
    """The plan that merges tokens by `first` and its slots by `second`; neither may have padding.

    A plan of batch 1 serves any batch of the other.

    Examples:
        >>> first = MergePlan(torch.tensor([[0, 0, 1, 2]]), torch.tensor([[2, 1, 1]]), torch.tensor([[1, 2, 3]]))
        >>> second = MergePlan(torch.tensor([[0, 1, 0]]), torch.tensor([[2, 1]]), torch.tensor([[0, 1]]))
        >>> plan = compose(first, second)
        >>> plan.slot.tolist(), plan.size.tolist(), plan.anchor.tolist()
        ([[0, 0, 1, 0]], [[3, 1]], [[1, 2]])
    """
    (batch,) = torch.broadcast_shapes(first.slot.shape[:1], second.slot.shape[:1])
    first, second = _expand(first, batch), _expand(second, batch)
    size = torch.zeros_like(second.size).scatter_add(1, second.slot, first.size)
    return MergePlan(second.slot.gather(1, first.slot), size, first.anchor.gather(1, second.anchor))


def sort_slots(plan: MergePlan) -> MergePlan:
    """The same merge with its slots in the order of their anchors, so that neighbors stay neighbors, and padding last.

    Examples:
        >>> plan = MergePlan(torch.tensor([[0, 2, 1, 0]]), torch.tensor([[2, 1, 1]]), torch.tensor([[0, 2, 1]]))
        >>> ordered = sort_slots(plan)
        >>> ordered.slot.tolist(), ordered.size.tolist(), ordered.anchor.tolist()
        ([[0, 1, 2, 0]], [[2, 1, 1]], [[0, 1, 2]])
    """
    order = plan.anchor.where(plan.size > 0, plan.slot.shape[1]).argsort(dim=1, stable=True)
    rank = order.argsort(1)
    ordered = MergePlan(rank.gather(1, plan.slot), plan.size.gather(1, order), plan.anchor.gather(1, order))
    return ordered._replace(route=index_plan(ordered, len(plan.slot)))


def _expand(plan: MergePlan, batch: int) -> MergePlan:
    slot, size, anchor = (part.expand(batch, -1) for part in (plan.slot, plan.size, plan.anchor))
    return MergePlan(slot, size, anchor)


def _extend_index(index: PlanIndex, tokens: int, slots: int, front: int, back: int) -> PlanIndex:
    """Without a sort: the rows of the tokens around the plan are known."""
    batch, outside = len(index.inverse) // tokens, front + back
    sample = torch.arange(batch, device=index.inverse.device)[:, None]
    # Every sample before adds `outside` tokens, and as many slots.
    rows, offsets, inverse = (part.view(batch, -1) + sample * outside for part in index)
    rows = _surround(rows, front, back, tokens, sample * (tokens + outside))
    offsets = _surround(offsets, front, back, tokens, sample * (tokens + outside))
    inverse = _surround(inverse, front, back, slots, sample * (slots + outside))
    return PlanIndex(rows.flatten(), offsets.flatten(), inverse.flatten())


def _surround(part: Tensor, front: int, back: int, length: int, start: Tensor | int = 0) -> Tensor:
    """int64 (batch, n), numbers below `length`, with the numbers before and behind them; samples begin at `start`."""
    before = torch.arange(front, device=part.device) + start
    behind = torch.arange(front + length, front + length + back, device=part.device) + start
    batch = len(part)
    return torch.cat([before.expand(batch, -1), part + front, behind.expand(batch, -1)], 1)
