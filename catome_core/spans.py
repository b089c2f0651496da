"""The grid's tokens within a longer sequence: text, class tokens or reference images before and after them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from catome_core.merging import attention_bias, merge, unmerge
from catome_core.planning import MergePlan


class Span(NamedTuple):
    """Tokens of a sequence that no plan knows, each a slot of its own: `front` before the planned ones, `back` after.

    Examples:
        >>> plan = MergePlan(torch.tensor([[0, 0, 1]]), torch.tensor([[2, 1]]), torch.tensor([[0, 2]]))
        >>> tokens = torch.tensor([[[9.0], [1.0], [3.0], [5.0], [7.0]]])
        >>> Span(1, 1).merge(tokens, plan).flatten()
        tensor([9., 2., 5., 7.])
        >>> Span(1, 1).unmerge(Span(1, 1).merge(tokens, plan), plan).flatten()
        tensor([9., 2., 2., 5., 7.])
        >>> Span(1, 1).anchors(plan)
        tensor([[0, 1, 3, 4]])
    """

    front: int = 0
    back: int = 0

    @property
    def outside(self) -> int:
        """Tokens that no plan knows."""
        return self.front + self.back

    def tokens(self, plan: MergePlan) -> int:
        """Length of the whole sequence before a merge."""
        return self.outside + plan.slot.shape[1]

    def slots(self, plan: MergePlan) -> int:
        """Length of the whole sequence after a merge."""
        return self.outside + plan.size.shape[1]

    def within(self, rows: Tensor) -> Tensor:
        """The planned rows of (batch, tokens or slots, ...)."""
        return rows[:, self.front : rows.shape[1] - self.back] if self.outside else rows

    def merge(self, tokens: Tensor, plan: MergePlan) -> Tensor:
        """`merge` of the planned tokens of (batch, tokens, channels); the others stay around them."""
        return self._around(tokens, merge(self.within(tokens), plan))

    def unmerge(self, merged: Tensor, plan: MergePlan) -> Tensor:
        """`unmerge` of the planned slots of (batch, slots, channels); the others stay around them."""
        return self._around(merged, unmerge(self.within(merged), plan))

    def anchors(self, plan: MergePlan) -> Tensor:
        """Index in the whole sequence of every slot's anchor: int64 (batch, slots)."""
        index = torch.arange(self.tokens(plan), device=plan.anchor.device).expand(len(plan.anchor), -1)
        return self._around(index, plan.anchor + self.front)

    def bias(self, plan: MergePlan, *, dtype: torch.dtype, proportional: bool) -> Tensor:
        """`attention_bias` (batch, 1, 1, slots) of the whole sequence: a token that no plan knows counts one."""
        return pad(attention_bias(plan, dtype=dtype, proportional=proportional), (self.front, self.back))

    def _around(self, rows: Tensor, planned: Tensor) -> Tensor:
        if not self.outside:
            return planned
        return torch.cat([rows[:, : self.front], planned, rows[:, rows.shape[1] - self.back :]], 1)


def take(rows: Tensor, index: Tensor, dim: int) -> Tensor:
    """Pick rows along `dim` for every sample: an index (1, n) serves all, with (batch, n) dimension 0 is the batch.

    Examples:
        >>> take(torch.tensor([[10, 11, 12]]), torch.tensor([[0, 2], [1, 2]]), 1)
        tensor([[10, 12],
                [11, 12]])
    """
    if len(index) == 1:
        return rows.index_select(dim, index[0])
    rows = rows.expand(len(index), *rows.shape[1:]).movedim(dim, 1)
    return rows[torch.arange(len(index), device=rows.device)[:, None], index].movedim(1, dim)
