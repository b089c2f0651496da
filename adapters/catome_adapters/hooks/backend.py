"""Which kernel a self-attention calls, as diffusers and transformers let their users choose it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn


class Backend(NamedTuple):
    """The attention backend of a library.

    Attributes:
        name: What the library calls it.
        calls_torch: Whether it calls torch's `scaled_dot_product_attention`, where calls are intercepted.
        takes_mask: Whether that call may have a mask.
        remedy: How to choose one that does both.
    """

    name: str
    calls_torch: bool
    takes_mask: bool
    remedy: str


def backend_of(attention: nn.Module) -> Backend | None:
    """The backend of a self-attention; None if there is no such choice."""
    return _backend_of_diffusers(attention) or _backend_of_transformers(attention)


def takes_mask(attention: nn.Module) -> bool:
    """Whether the kernel of a self-attention may be called with a mask."""
    backend = backend_of(attention)
    return backend is None or backend.takes_mask


def _backend_of_diffusers(attention: nn.Module) -> Backend | None:
    processor: Any = getattr(attention, "processor", None)
    if not hasattr(processor, "_attention_backend"):
        return None
    # The active backend has no public name.
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry  # pyright: ignore[reportPrivateUsage]

    backend = processor._attention_backend or _AttentionBackendRegistry.get_active_backend()[0]
    name = getattr(backend, "value", backend)
    calls_torch = name.strip("_").startswith("native") and not name.endswith(("_npu", "_xla"))
    return Backend(name, calls_torch, name != "_native_flash", "set_attention_backend('native') on the network")


def _backend_of_transformers(attention: nn.Module) -> Backend | None:
    name = getattr(getattr(attention, "config", None), "_attn_implementation", None)
    return None if name is None else Backend(name, name == "sdpa", True, "set_attn_implementation('sdpa') on the model")
