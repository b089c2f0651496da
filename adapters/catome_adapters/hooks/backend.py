"""Which kernel a self-attention calls, as diffusers and transformers let their users choose it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from torch import nn

from catome_adapters.hooks.arguments import AttentionNeeds

FLASH = "_native_flash"
"""Torch's own flash attention, as diffusers calls it. It takes no mask."""


class Backend(NamedTuple):
    """The attention backend of a library.

    Attributes:
        name: What the library calls it.
        calls_torch: Whether it calls torch's `scaled_dot_product_attention`, where calls are intercepted.
        has_substitute: Whether torch's flash attention computes the same, and can be called in its place.
        remedy: How to choose one that calls torch.
        counts_tokens: Whether its mask is a function of the index of tokens, which merging changes.
    """

    name: str
    calls_torch: bool
    has_substitute: bool
    remedy: str
    counts_tokens: bool = False


class Kernel(NamedTuple):
    """What a self-attention calls while its keys are slots.

    Attributes:
        takes_mask: Whether it may be called with a mask.
        contexts: Contexts that are open while it is called.
    """

    takes_mask: bool
    contexts: tuple[AbstractContextManager[None], ...] = ()


class FlashInstead(AbstractContextManager[None]):
    """While this is open, a self-attention of diffusers calls torch's flash attention."""

    def __init__(self, attention: nn.Module) -> None:
        self.attention: Any = attention
        self.chosen: Any = None

    def __enter__(self) -> None:
        from diffusers.models.attention_dispatch import AttentionBackendName

        processor = self.attention.processor
        self.chosen, processor._attention_backend = processor._attention_backend, AttentionBackendName(FLASH)

    def __exit__(self, *error: object) -> None:
        self.attention.processor._attention_backend = self.chosen


def backend_of(attention: nn.Module) -> Backend | None:
    """The backend of a self-attention; None if there is no such choice."""
    return _backend_of_diffusers(attention) or _backend_of_transformers(attention)


def kernel_for(attention: nn.Module, needs: AttentionNeeds) -> Kernel:
    """The kernel that takes account of slots, if attention has to."""
    backend = backend_of(attention)
    if backend is None or not any(needs):
        return Kernel(takes_mask=True)
    if backend.has_substitute:
        return Kernel(takes_mask=False, contexts=(FlashInstead(attention),))
    return Kernel(takes_mask=backend.name != FLASH)


def _backend_of_diffusers(attention: nn.Module) -> Backend | None:
    processor: Any = getattr(attention, "processor", None)
    if not hasattr(processor, "_attention_backend"):
        return None
    if "FlexAttn" in type(processor).__name__:
        remedy = "set_attn_processor(...) on the network with the one that it had when it was made"
        return Backend("flex", calls_torch=False, has_substitute=False, remedy=remedy, counts_tokens=True)
    # The active backend has no public name.
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry  # pyright: ignore[reportPrivateUsage]

    backend = processor._attention_backend or _AttentionBackendRegistry.get_active_backend()[0]
    name = getattr(backend, "value", backend)
    kind = name.strip("_")
    calls_torch = kind.startswith("native") and not kind.endswith(("_npu", "_xla"))
    has_substitute = kind.startswith(("flash", "sage"))
    return Backend(name, calls_torch, has_substitute, remedy="set_attention_backend('native') on the network")


def _backend_of_transformers(attention: nn.Module) -> Backend | None:
    # Not `getattr`: a module takes long to find that there is none, and is asked before every step.
    name = getattr(vars(attention).get("config"), "_attn_implementation", None)
    if name is None:
        return None
    return Backend(name, name == "sdpa", has_substitute=False, remedy="set_attn_implementation('sdpa') on the model")
