"""Make any attention aware of slots by intercepting torch's attention functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import linear, multi_head_attention_forward, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from catome_core.attention.channels import attend_with_channels
from catome_core.attention.field import NearField
from catome_core.attention.masks import SlotMask, attention_bias, refuse_causal
from catome_core.attention.multihead import Values, rewrite_multihead
from catome_core.attention.near import attend_near_and_far
from catome_core.merging import gather_anchors, merge
from catome_core.planning import MergePlan

if TYPE_CHECKING:
    from jaxtyping import Float

FUSED_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
TENSOR_ARGUMENTS = FUSED_ARGUMENTS[:4]


class InterceptAttention(TorchFunctionMode):
    """While this context is open, attention over a plan's keys takes account of slots: padding, sizes, masks.

    It works for any code that calls `torch.nn.functional.scaled_dot_product_attention` with keys (batch, heads, keys,
    channels) or (batch * heads, keys, channels), and for `nn.MultiheadAttention`, on the thread that opened the context
    only; `torch.compile` traces it without a graph break. A mask that the code brings for the tokens before the merge,
    such as relative positions, becomes the mask of the anchors.

    Args:
        plan: The merge of all keys; see `extend` for keys that are not merged.
        proportional: Weigh every key by the number of tokens it stands for.
        padded: Whether the plan can have padding, which nothing may attend to.
        merge_keys: Keys and values arrive unmerged: attend to the anchors' keys. They may have been rotated by then, so
            rotary embeddings need no care. False: everything arrives merged.
        values: With `merge_keys`, the value of a slot: the "mean" of its tokens' values, or that of its "anchor".
        near: With `merge_keys`, see tokens one by one up to this distance, and beyond it the anchors of cells, each of
            which counts for its cell: see `attend_near_and_far`. For a plan of batch 1, of all keys; `values` and
            `proportional` are "anchor" and True.
        all_calls: Change every attention over this many keys, and not just the first.
        takes_mask: Whether fused attention may have a mask. False: what a mask would add is in channels of its own.

    Attributes:
        was_called: Whether such an attention was called, ever: use a new one for each forward pass.
        projected: Whether anything was projected. A cache that returns what attention gave in an earlier step projects
            nothing.
        required: Whether attention that is not changed would be wrong.
        length: Number of keys that identifies the call to intercept.

    Raises:
        ValueError: If `values` is unknown or `near` does not fit the plan; in the intercepted call, if it is causal,
            its mask fits neither tokens nor slots, or `nn.MultiheadAttention` gets a near field.

    Examples:
        >>> import torch
        >>> plan = MergePlan(torch.tensor([[0, 0, 1]]), torch.tensor([[2, 1]]), torch.tensor([[0, 2]]))
        >>> query = key = torch.zeros(1, 1, 3, 8)
        >>> value = torch.tensor([1.0, 3.0, 8.0]).reshape(1, 1, 3, 1).expand_as(key)
        >>> with InterceptAttention(plan, proportional=True, merge_keys=True):
        ...     attended = scaled_dot_product_attention(query, key, value)
        >>> attended[0, 0, :, 0]
        tensor([4., 4., 4.])
    """

    def __init__(
        self,
        plan: MergePlan,
        *,
        proportional: bool = False,
        padded: bool = True,
        merge_keys: bool = False,
        values: Values = "mean",
        near: NearField | None = None,
        all_calls: bool = False,
        takes_mask: bool = True,
    ) -> None:
        super().__init__()
        if values not in ("mean", "anchor"):
            raise ValueError(f"values is {values!r}; expected 'mean' or 'anchor'")
        if near is not None:
            _check_field(near, plan, merge_keys)
        needs_bias = proportional or padded
        self.values: Values = values
        self.near = near
        self.plan, self.merge_keys, self.all_calls, self.takes_mask = plan, merge_keys, all_calls, takes_mask
        self.mask = SlotMask(plan, not merge_keys, needs_bias, proportional)
        self.was_called = self.projected = False
        self.required = needs_bias or merge_keys
        self.length = (plan.slot if merge_keys else plan.size).shape[1]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Change fitting attention; everything else passes."""
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            return self._on_fused(bind_fused(args, kwargs))
        if func is multi_head_attention_forward:
            return self._on_multihead(args, kwargs)
        self.projected = self.projected or func is linear
        return func(*args, **kwargs)

    def _on_fused(self, call: dict[str, Any]) -> Tensor:
        key, batch = call["key"], len(self.plan.slot)
        # Heads may be part of the batch dimension, sample by sample.
        joined = key.ndim == 3 and len(key) % batch == 0
        known = joined or (key.ndim == 4 and batch in (1, len(key)))
        if not known or not self._matches(key.shape[-2]):
            return scaled_dot_product_attention(**call)
        if not joined:
            return self._attend(call)
        call |= {name: _split_heads(call[name], batch) for name in TENSOR_ARGUMENTS if call.get(name) is not None}
        return rearrange(self._attend(call), "b h n c -> (b h) n c")

    def _on_multihead(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = args[1]
        if key.ndim == 3 and len(self.plan.slot) in (1, key.shape[1]) and self._matches(len(key)):
            refuse_causal(kwargs)
            if self.near is not None:
                raise ValueError(
                    "nn.MultiheadAttention got a near field, and does not show its heads: use attention that calls "
                    "scaled_dot_product_attention, or near=None"
                )
            args, kwargs = rewrite_multihead(args, kwargs, self.mask, self.values)
        return multi_head_attention_forward(*args, **kwargs)

    def _attend(self, call: dict[str, Any]) -> Tensor:
        """Fused attention over slots, whose arguments have four dimensions each."""
        if self.near is not None:
            first = self.near.lead
            anchors = self.plan.anchor[0, first : first + self.near.grid.destinations] - first
            return attend_near_and_far(call, anchors, self.near, takes_mask=self.takes_mask)
        refuse_causal(call)
        if self.merge_keys:
            key, value = call["key"], call["value"]
            of_anchors = self.values == "anchor"
            value = gather_anchors(value, self.plan, dim=2) if of_anchors else _merge_heads(value, self.plan)
            call |= {"key": gather_anchors(key, self.plan, dim=2), "value": value}
        given = call.get("attn_mask")
        if given is None and not self.takes_mask and self.mask.needs_bias:
            bias = attention_bias(self.plan, dtype=torch.float32, proportional=self.mask.proportional)
            return attend_with_channels(call, bias)
        call["attn_mask"] = self.mask.for_slots(given, call["query"].dtype)
        return scaled_dot_product_attention(**call)

    def _matches(self, keys: int) -> bool:
        fits = keys == self.length and (self.all_calls or not self.was_called)
        self.was_called = self.was_called or fits
        return fits


def bind_fused(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `scaled_dot_product_attention` by name; a builtin has no signature to bind them by."""
    return dict(zip(FUSED_ARGUMENTS[: len(args)], args, strict=True)) | kwargs


def _check_field(field: NearField, plan: MergePlan, merge_keys: bool) -> None:
    found = (len(plan.slot), plan.slot.shape[1], plan.size.shape[1])
    expected = (1, field.tokens, field.outside + field.grid.destinations)
    if not merge_keys or found != expected:
        raise ValueError(
            f"the near field got a plan of (batch, tokens, slots) {found} and merge_keys={merge_keys}; expected "
            f"{expected} and True for {field}: the plan of a lattice, which all samples share"
        )


def _merge_heads(value: Float[Tensor, "b h n c"], plan: MergePlan) -> Float[Tensor, "b h slots c"]:
    merged = merge(rearrange(value, "b h n c -> b n (h c)"), plan)
    return rearrange(merged, "b n (h c) -> b h n c", h=value.shape[1])


def _split_heads(rows: Tensor, batch: int) -> Tensor:
    """(batch * heads, ...) by sample and head; a mask with a single row or without a batch serves all."""
    if rows.ndim != 3:
        return rows
    return rearrange(rows, "(b h) n c -> b h n c", b=batch if len(rows) % batch == 0 else 1)
