"""Hooks of diffusers that run in a module's place, as its caches over steps do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

SKIPS_ATTENTION = "AttentionProcessorSkipHook"
PASSING = (
    "TextKVCacheBlockHook",
    "TransformerBlockSkipHook",
    "FeedForwardSkipHook",
    SKIPS_ATTENTION,
    "PeftInputAutocastDisableHook",
)
"""Those that keep no image tokens for later."""


def find_substitutes(module: nn.Module) -> list[Any]:
    """The hooks that may return for this module what they kept from an earlier step."""
    return [hook for hook in _hooks(module) if hasattr(hook, "new_forward") and type(hook).__name__ not in PASSING]


def skips_attention(module: nn.Module) -> bool:
    """Whether a guider, or the user, skips this self-attention or its scores in this call."""
    return any(type(hook).__name__ == SKIPS_ATTENTION for hook in _hooks(module))


def _hooks(module: nn.Module) -> Iterable[Any]:
    return getattr(vars(module).get("_diffusers_hook"), "hooks", {}).values()
