"""Telling attention of slots without its help: torch's attention functions are met on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.functional import multi_head_attention_forward, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from catome_core.masks import SlotMask
from catome_core.multihead import tell_multihead
from catome_core.planning import MergePlan
from catome_core.spans import Span, take

FUSED = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
TENSORS = FUSED[:4]

ALL = Span()


class SlotAttention(TorchFunctionMode):
    """While this context is open, attention over a plan's keys learns of slots: padding, sizes, masks.

    Any code that calls `torch.nn.functional.scaled_dot_product_attention` with keys (batch, heads, keys, channels) or
    (batch * heads, keys, channels) is served, and `nn.MultiheadAttention`, on the thread that opened the context alone;
    `torch.compile` traces it, without a graph break. A mask that the code brings for the tokens before the merge, such
    as relative positions, becomes that of the anchors.

    Args:
        plan: The merge.
        proportional: Weigh every key by the number of tokens it stands for.
        padded: Whether the plan can have padding, which nothing may attend to.
        keys: Keys and values come unmerged: attend to the anchors' keys, and to the mean of each slot's values.
            They may have been rotated by then, so rotary embeddings need no care. False: everything comes merged.
        span: Where the planned tokens lie among the keys.
        every: Tell every attention over so many keys, and not just the first.

    Attributes:
        seen: Whether such an attention has passed.

    Examples:
        >>> import torch
        >>> plan = MergePlan(torch.tensor([[0, 0, 1]]), torch.tensor([[2, 1]]), torch.tensor([[0, 2]]))
        >>> query = key = torch.zeros(1, 1, 3, 8)
        >>> value = torch.tensor([1.0, 3.0, 8.0]).reshape(1, 1, 3, 1).expand_as(key)
        >>> with SlotAttention(plan, proportional=True, keys=True):
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
        keys: bool = False,
        span: Span = ALL,
        every: bool = False,
    ) -> None:
        super().__init__()
        self.plan, self.span, self.keys, self.every = plan, span, keys, every
        self.mask = SlotMask(plan, span, not keys, proportional or padded, proportional)
        self.seen = False

    @property
    def needed(self) -> bool:
        """Whether attention that is not told would be wrong."""
        return self.mask.biased or self.keys

    @property
    def length(self) -> int:
        """Keys of the attention that is waited for."""
        return self.span.tokens(self.plan) if self.keys else self.span.slots(self.plan)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Change fitting attention; everything else passes."""
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            return self._meet_fused(dict(zip(FUSED, args, strict=False)) | kwargs)
        if func is multi_head_attention_forward:
            return self._meet_module(args, kwargs)
        return func(*args, **kwargs)

    def _meet_fused(self, call: dict[str, Any]) -> Tensor:
        key, batch = call["key"], len(self.plan.slot)
        # Heads may lie in the batch, sample by sample.
        split = key.ndim == 3 and len(key) % batch == 0
        known = split or (key.ndim == 4 and batch in (1, len(key)))
        if not known or not self._awaits(key.shape[-2]):
            return scaled_dot_product_attention(**call)
        if not split:
            return scaled_dot_product_attention(**self._told(call))
        call |= {name: _split(call[name], batch) for name in TENSORS if call.get(name) is not None}
        return scaled_dot_product_attention(**self._told(call)).flatten(0, 1)

    def _told(self, call: dict[str, Any]) -> dict[str, Any]:
        if self.keys:
            anchors = self.span.anchors(self.plan)
            call |= {"key": take(call["key"], anchors, 2), "value": self._means(call["value"])}
        mask = self.mask.combine(call.get("attn_mask"), call["query"].dtype)
        self._refuse_causal(call)
        return call | {"attn_mask": mask}

    def _means(self, value: Tensor) -> Tensor:
        rows = value.transpose(1, 2)
        return self.span.merge(rows.flatten(2), self.plan).unflatten(2, rows.shape[2:]).transpose(1, 2)

    def _meet_module(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = args[1]
        if key.ndim == 3 and len(self.plan.slot) in (1, key.shape[1]) and self._awaits(len(key)):
            self._refuse_causal(kwargs)
            args, kwargs = tell_multihead(args, kwargs, self.mask)
        return multi_head_attention_forward(*args, **kwargs)

    def _awaits(self, keys: int) -> bool:
        fits = keys == self.length and (self.every or not self.seen)
        self.seen = self.seen or fits
        return fits

    def _refuse_causal(self, call: dict[str, Any]) -> None:
        if call.get("is_causal"):
            raise ValueError("attention is causal, which merging would change; detach the session for this model")


def _split(rows: Tensor, batch: int) -> Tensor:
    """(batch * heads, ...) by sample and head; a mask of a single row or without a batch serves all."""
    return rows.unflatten(0, (batch if len(rows) % batch == 0 else 1, -1)) if rows.ndim == 3 else rows
