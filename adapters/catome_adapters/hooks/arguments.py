"""Making diffusers' `Attention` aware of slots by its arguments, which spares the projections of merged keys."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from torch import Tensor, nn

from catome_adapters.hooks.owner import HookOwner
from catome_adapters.sites.call import Arguments, Signature
from catome_adapters.sites.site import MergeSite
from catome_core import Lattice, MergePlan, NearField, attention_bias, gather_anchors, merge

PROCESSORS = ("AttnProcessor", "AttnProcessor2_0", "SlicedAttnProcessor", "XFormersAttnProcessor")
"""Those of diffusers that attend to whatever keys they are given. Others ignore them, or take them for text."""


class AttentionNeeds(NamedTuple):
    """What attention has to take account of.

    Attributes:
        proportional: The number of tokens that every key stands for.
        padded: Slots that may be empty.
        merge_keys: Keys and values that merge although the queries do not.
        lattice: The keys of a lattice, and their own values; None: keys of anchors, and mean values.
        near: The near field of a call, beside its lattice.
    """

    proportional: bool
    padded: bool
    merge_keys: bool
    lattice: Lattice | None = None
    near: NearField | None = None


class AnchorKeys(AbstractContextManager[None]):
    """While this is open, the keys of one self-attention are projected from the anchors of the slots."""

    def __init__(self, way: ByArguments, anchors: Tensor) -> None:
        self.way, self.anchors = way, anchors

    def __enter__(self) -> None:
        self.way.anchors = self.anchors

    def __exit__(self, *error: object) -> None:
        self.way.anchors = None


class ByArguments(HookOwner):
    """Makes diffusers' `Attention` aware of slots: it takes keys and an additive mask as arguments.

    With merged keys, keys are those of the anchors, since a mean of keys is shorter than each of them.

    Attributes:
        anchors: What the keys are projected from (batch, slots, channels), while such a call runs.
    """

    def __init__(self, site: MergeSite, module: nn.Module, needs: AttentionNeeds) -> None:
        self.site, self.module, self.needs = site, module, needs
        self.signature = Signature.of(module)
        self.anchors: Tensor | None = None
        self.projection: nn.Module | None = None
        self.handle: Any = None
        self.begin_step()

    @property
    def are_taken(self) -> bool:
        """Whether attention takes these arguments with the processor that it has in this call."""
        processor = getattr(self.module, "processor", None)
        kind = type(processor)
        of_diffusers = kind.__module__ == "diffusers.models.attention_processor"
        return processor is None or (of_diffusers and kind.__name__ in PROCESSORS)

    def aware(
        self, call: Arguments, plan: MergePlan, needs: AttentionNeeds
    ) -> tuple[Arguments, tuple[AbstractContextManager[Any], ...]]:
        """The call with a bias and, if they merge, with the slots of its tokens as keys and values."""
        tokens: Tensor = self.signature.read(call, next(iter(self.site.layout.attention_arguments), None))
        bias = self._bias(tokens, plan, needs, self.signature.read(call, "attention_mask"))
        call = self.signature.write(call, "attention_mask", bias)
        if not needs.merge_keys:
            return call, ()
        anchors = gather_anchors(tokens, plan)
        if needs.lattice is not None:
            return self.signature.write(call, "encoder_hidden_states", anchors), ()
        keys = merge(tokens, plan)
        return self.signature.write(call, "encoder_hidden_states", keys), (AnchorKeys(self, anchors),)

    def begin_step(self) -> None:
        """Adapters such as LoRA put another module in the projection's place, so it is looked up before every step."""
        projection = getattr(self.module, "to_k", None)
        projects_anchors = self.needs.merge_keys and self.needs.lattice is None
        if not projects_anchors or projection is None or projection is self.projection:
            return
        self.remove()
        self.projection = projection
        self.handle = projection.register_forward_pre_hook(self._before_projection)

    def remove(self) -> None:
        """Remove the hook."""
        if self.handle is not None:
            self.handle.remove()

    def _before_projection(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return args if self.is_copy or self.anchors is None else (self.anchors, *args[1:])

    def _bias(self, tokens: Tensor, plan: MergePlan, needs: AttentionNeeds, mask: Tensor | None) -> Tensor | None:
        """What is added to the scores, (batch, 1, slots); None if there is nothing to add."""
        if mask is not None:
            raise ValueError(
                f"{self.site.name} was given an attention_mask of shape {tuple(mask.shape)} for its "
                "self-attention, which does not fit merged keys; detach the session for masked inputs, or leave the "
                "mask out"
            )
        if not needs.padded and not needs.proportional:
            return None
        bias = attention_bias(plan, dtype=tokens.dtype, proportional=needs.proportional)
        return bias[:, 0].expand(len(tokens), -1, -1)
