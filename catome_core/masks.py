"""What the mask of an attention becomes when tokens merge: rows and columns of the anchors, and the bias of slots."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from catome_core.planning import MergePlan
from catome_core.spans import Span, take


class SlotMask(NamedTuple):
    """Makes the additive mask (batch, heads, queries, keys) of an attention whose keys are slots.

    Args:
        plan: The merge.
        span: Where the planned tokens lie among the keys.
        merged_queries: Whether queries are slots too.
        biased: Whether there is anything to tell, of padding or proportion.
        proportional: Weigh every key by the number of tokens it stands for.

    Examples:
        >>> plan = MergePlan(torch.tensor([[0, 0, 1]]), torch.tensor([[2, 1]]), torch.tensor([[0, 2]]))
        >>> mask = SlotMask(plan, Span(), merged_queries=True, biased=False, proportional=False)
        >>> mask.combine(torch.arange(9.0).reshape(3, 3), torch.float32)
        tensor([[[[0., 2.],
                  [6., 8.]]]])
    """

    plan: MergePlan
    span: Span
    merged_queries: bool
    biased: bool
    proportional: bool

    def combine(self, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """The caller's mask for tokens, additive or bool, and the bias; None if there is neither.

        Raises:
            ValueError: If the mask has rows or columns for neither tokens nor slots.
        """
        bias = self.span.bias(self.plan, dtype=dtype, proportional=self.proportional) if self.biased else None
        if mask is None:
            return bias
        mask = self._of_anchors(additive(mask, dtype))
        return mask if bias is None else mask + bias

    def _of_anchors(self, mask: Tensor) -> Tensor:
        """A mask of slots stays as it is, but if there are as many as tokens, it counts as one of tokens."""
        before, slots, anchors = self.span.tokens(self.plan), self.span.slots(self.plan), self.span.anchors(self.plan)
        mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        rows = (1, before, slots) if self.merged_queries else (1, before)
        if mask.shape[-1] not in (1, before, slots) or mask.shape[-2] not in rows:
            raise ValueError(
                f"attention got an attn_mask of shape {tuple(mask.shape)}; expected a row and a column for each of "
                f"the {before} tokens or {slots} slots: detach the session for this model, or leave the mask out"
            )
        if mask.shape[-1] == before:
            mask = take(mask, anchors, 3)
        return take(mask, anchors, 2) if self.merged_queries and mask.shape[-2] == before else mask


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask, True where attention may look, as what is added to the scores; any other stays as it is.

    Examples:
        >>> additive(torch.tensor([True, False]), torch.float32)
        tensor([0., -inf])
    """
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf)
