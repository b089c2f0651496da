"""The two linear maps of a merge for autograd: each is the other's gradient, up to the sizes of the slots.

Torch has a gradient for `embedding_bag` that sorts and has none of its own, and one for `index_select` that adds with
atomics on GPUs, in any order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped


class SlotMeans(torch.autograd.Function):
    """The mean of the tokens of every slot; 0 for a slot without tokens."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        tokens: Float[Tensor, "batch*tokens channels"],
        rows: Int[Tensor, "batch*tokens"],
        offsets: Int[Tensor, "batch*slots"],
        inverse: Int[Tensor, "batch*tokens"],
        size: Int[Tensor, "plans slots"],
    ) -> Float[Tensor, "batch*slots channels"]:
        """Means by the parts of a `PlanIndex`."""
        return embedding_bag(rows, tokens, offsets, mode="mean")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep the plan."""
        _keep(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Every token gets its share of what its slot gets."""
        plan = ctx.saved_tensors
        return CopyBack.apply(grads[0] / _per_slot(plan[-1], grads[0]).clamp_min(1), *plan), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        """The map itself."""
        return SlotMeans.apply(tangents[0], *ctx.saved_for_forward)


class CopyBack(torch.autograd.Function):
    """For every token the row of its slot."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        slots: Shaped[Tensor, "batch*slots channels"],
        rows: Int[Tensor, "batch*tokens"],
        offsets: Int[Tensor, "batch*slots"],
        inverse: Int[Tensor, "batch*tokens"],
        size: Int[Tensor, "plans slots"],
    ) -> Shaped[Tensor, "batch*tokens channels"]:
        """Copies by the parts of a `PlanIndex`."""
        return slots.index_select(0, inverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep the plan."""
        _keep(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Every slot gets the sum of what its tokens get, accumulated in float32 at least."""
        grad, plan = grads[0], ctx.saved_tensors
        means = SlotMeans.apply(grad.to(torch.promote_types(grad.dtype, torch.float32)), *plan)
        return (means * _per_slot(plan[-1], means)).to(grad.dtype), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        """The map itself."""
        return CopyBack.apply(tangents[0], *ctx.saved_for_forward)


def _per_slot(size: Int[Tensor, "plans slots"], slots: Tensor) -> Int[Tensor, "batch*slots 1"]:
    """The sizes, one row for each of the slots."""
    return size.expand(len(slots) // size.shape[1], -1).reshape(-1, 1)


def _keep(ctx: Any, inputs: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[1:])
    ctx.save_for_forward(*inputs[1:])
