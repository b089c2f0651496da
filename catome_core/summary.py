"""What a plan does, in numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from catome_core.planning import MergePlan

if TYPE_CHECKING:
    from jaxtyping import Float32, Int


class PlanSummary(NamedTuple):
    """Figures of a plan; the tensors stay on its device.

    Attributes:
        tokens: Tokens before the merge.
        slots: Slots after it, padding included: what is computed.
        real: Slots that hold tokens (int64).
        merged_fraction: Share of the tokens that is gone: 1 - real / tokens.
        largest: Tokens in the fullest slot (int64).
    """

    tokens: int
    slots: int
    real: Int[Tensor, "batch"]
    merged_fraction: Float32[Tensor, "batch"]
    largest: Int[Tensor, "batch"]


def summarize(plan: MergePlan) -> PlanSummary:
    """Count what a plan merges.

    Examples:
        >>> plan = MergePlan(torch.tensor([[0, 0, 0, 1]]), torch.tensor([[3, 1, 0]]), torch.tensor([[0, 3, 0]]))
        >>> summarize(plan)
        PlanSummary(tokens=4, slots=3, real=tensor([2]), merged_fraction=tensor([0.5000]), largest=tensor([3]))
    """
    tokens, real = plan.slot.shape[1], (plan.size > 0).sum(-1)
    return PlanSummary(tokens, plan.size.shape[1], real, 1 - real / tokens, plan.size.amax(-1))


def jaccard_distance(plan_a: MergePlan, plan_b: MergePlan) -> Float32[Tensor, "batch"]:
    """Jaccard distance between the merged (source, destination) pairs of two plans (paper, Fig. 4).

    Returns:
        0 for the same pairs (or none at all in both), 1 for no pair in common.

    Raises:
        ValueError: If the plans are for different numbers of tokens or samples; one for a single sample serves any.

    Examples:
        >>> a = MergePlan(torch.tensor([[0, 0, 0]]), torch.tensor([[3]]), torch.tensor([[0]]))
        >>> b = MergePlan(torch.tensor([[0, 0, 1]]), torch.tensor([[2, 1]]), torch.tensor([[0, 2]]))
        >>> jaccard_distance(a, b)
        tensor([0.5000])
    """
    for dim, name in enumerate(("samples", "tokens")):
        lengths = plan_a.slot.shape[dim], plan_b.slot.shape[dim]
        if lengths[0] != lengths[1] and (dim == 1 or 1 not in lengths):
            raise ValueError(f"the plans are for {lengths[0]} and {lengths[1]} {name}; expected two of one layer")
    anchor_a, anchor_b = (plan.anchor.gather(1, plan.slot) for plan in (plan_a, plan_b))
    token = torch.arange(anchor_a.shape[1], device=anchor_a.device)
    merged_a, merged_b = anchor_a != token, anchor_b != token
    both = (merged_a & merged_b & (anchor_a == anchor_b)).sum(-1)
    either = merged_a.sum(-1) + merged_b.sum(-1) - both
    return 1 - torch.where(either == 0, 1.0, both / either.clamp_min(1))
