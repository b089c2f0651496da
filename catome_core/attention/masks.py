"""What is added to attention scores when tokens merge: the bias of slots, and the caller's mask at the anchors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from catome_core.merging import gather_anchors
from catome_core.planning import MergePlan

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped


def attention_bias(
    plan: MergePlan, *, dtype: torch.dtype, proportional: bool = False
) -> Float[Tensor, "batch 1 1 slots"]:
    """What is added to the attention scores of every key: minus infinity on padding, so that nothing attends to it.

    Args:
        plan: The plan that made the keys.
        dtype: Of the result: that of the queries.
        proportional: Add log(size), so that a key that stands for four tokens weighs four.

    Returns:
        A mask for `scaled_dot_product_attention`, broadcast over heads and queries.

    Examples:
        >>> plan = MergePlan(torch.tensor([[0, 0]]), torch.tensor([[2, 0]]), torch.tensor([[0, 0]]))
        >>> attention_bias(plan, dtype=torch.float32, proportional=True)
        tensor([[[[0.6931,   -inf]]]])
    """
    size = plan.size[:, None, None]
    # In float32 first: half precision would round large slots before the logarithm.
    return (size if proportional else size.clamp_max(1)).float().log().to(dtype)


class SlotMask(NamedTuple):
    """Makes the additive mask (batch, heads, queries, keys) of an attention whose keys are slots.

    Attributes:
        plan: The merge of all keys.
        merged_queries: Whether queries are slots too.
        needs_bias: Whether the plan can have padding, or keys are weighed.
        proportional: Weigh every key by the number of tokens it stands for.

    Examples:
        >>> plan = MergePlan(torch.tensor([[0, 0, 1]]), torch.tensor([[2, 1]]), torch.tensor([[0, 2]]))
        >>> mask = SlotMask(plan, merged_queries=True, needs_bias=False, proportional=False)
        >>> mask.for_slots(torch.arange(9.0).reshape(3, 3), torch.float32)
        tensor([[[[0., 2.],
                  [6., 8.]]]])
    """

    plan: MergePlan
    merged_queries: bool
    needs_bias: bool
    proportional: bool

    def for_slots(
        self, mask: Shaped[Tensor, "..."] | None, dtype: torch.dtype
    ) -> Float[Tensor, "batch heads queries slots"] | None:
        """The caller's mask for tokens, additive or bool, plus the bias of slots; None if there is neither.

        Every dimension but the last may be 1, for all.

        Raises:
            ValueError: If the mask has rows or columns for neither tokens nor slots.
        """
        bias = attention_bias(self.plan, dtype=dtype, proportional=self.proportional) if self.needs_bias else None
        if mask is None:
            return bias
        mask = self._at_anchors(to_additive(mask, dtype))
        return mask if bias is None else mask + bias

    def _at_anchors(self, mask: Tensor) -> Tensor:
        """A mask that already has slot columns is kept; if tokens and slots are equally many, it is one over tokens."""
        tokens, slots = self.plan.slot.shape[1], self.plan.size.shape[1]
        mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        rows = (1, tokens, slots) if self.merged_queries else (1, tokens)
        if mask.shape[-1] not in (1, tokens, slots) or mask.shape[-2] not in rows:
            raise ValueError(
                f"attention got an attn_mask of shape {tuple(mask.shape)}; expected a row and a column for each of "
                f"the {tokens} tokens or {slots} slots: detach the session for this model, or leave the mask out"
            )
        if mask.shape[-1] == tokens:
            mask = gather_anchors(mask, self.plan, dim=3)
        if self.merged_queries and mask.shape[-2] == tokens:
            mask = gather_anchors(mask, self.plan, dim=2)
        return mask


def to_additive(mask: Shaped[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """Turn a bool mask, True where attention may look, into what is added to the scores; any other stays as it is.

    Examples:
        >>> to_additive(torch.tensor([True, False]), torch.float32)
        tensor([0., -inf])
    """
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf)


def refuse_causal(call: dict[str, Any]) -> None:
    """Raise ValueError if these arguments ask for causal attention."""
    if call.get("is_causal"):
        raise ValueError("attention is causal, which merging would change; detach the session for this model")
