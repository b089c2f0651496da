"""The two linear maps of a merge, each of which is the other's gradient up to the sizes of the slots."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from catome_core.planning import PlanIndex

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped


def slot_means(
    tokens: Float[Tensor, "batch*tokens channels"], index: PlanIndex, size: Int[Tensor, "plans slots"]
) -> Float[Tensor, "batch*slots channels"]:
    """The mean of the tokens of every slot; 0 for a slot without tokens."""
    return SlotMeans.apply(tokens, *index, size) if _records() else _mean(tokens, index.rows, index.offsets)


def copy_back(
    slots: Shaped[Tensor, "batch*slots channels"], index: PlanIndex, size: Int[Tensor, "plans slots"]
) -> Shaped[Tensor, "batch*tokens channels"]:
    """For every token the row of its slot."""
    return CopyBack.apply(slots, *index, size) if _records() else slots.index_select(0, index.inverse)


class SlotMeans(torch.autograd.Function):
    """`slot_means`. The gradient that torch has for `embedding_bag` sorts, and has none of its own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(tokens: Tensor, rows: Tensor, offsets: Tensor, inverse: Tensor, size: Tensor) -> Tensor:
        """Called by `apply`."""
        return _mean(tokens, rows, offsets)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep the plan, for gradients of any order."""
        _save(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The other map, of the same plan."""
        *index, size = ctx.saved_tensors
        share = grads[0] / _rows(size, grads[0]).clamp_min(1)
        return copy_back(share, PlanIndex(*index), size), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        """The map itself, as it is linear."""
        *index, size = ctx.saved_for_forward
        return slot_means(tangents[0], PlanIndex(*index), size)


class CopyBack(torch.autograd.Function):
    """`copy_back`. The gradient that torch has for `index_select` adds with atomics on GPUs, in any order."""

    generate_vmap_rule = True

    @staticmethod
    def forward(slots: Tensor, rows: Tensor, offsets: Tensor, inverse: Tensor, size: Tensor) -> Tensor:
        """Called by `apply`."""
        return slots.index_select(0, inverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep the plan, for gradients of any order."""
        _save(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The other map, of the same plan."""
        *index, size = ctx.saved_tensors
        means = slot_means(grads[0], PlanIndex(*index), size)
        return means * _rows(size, means), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        """The map itself, as it is linear."""
        *index, size = ctx.saved_for_forward
        return copy_back(tangents[0], PlanIndex(*index), size)


def _records() -> bool:
    """Whether gradients may be recorded; the compiler derives its own from the plain operations."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _mean(tokens: Tensor, rows: Tensor, offsets: Tensor) -> Tensor:
    # On a CPU, half precision would be rounded before the division.
    wide = torch.promote_types(tokens.dtype, torch.float32) if tokens.device.type == "cpu" else tokens.dtype
    # One pass over the tokens, summed in the order of the index: no atomics, the same bits from run to run.
    return embedding_bag(rows, tokens.to(wide), offsets, mode="mean").to(tokens.dtype)


def _rows(size: Int[Tensor, "plans slots"], slots: Tensor) -> Int[Tensor, "batch*slots 1"]:
    """The sizes, one row per slot of the batch."""
    return size.expand(len(slots) // size.shape[1], -1).reshape(-1, 1)


def _save(ctx: Any, inputs: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[1:])
    ctx.save_for_forward(*inputs[1:])
