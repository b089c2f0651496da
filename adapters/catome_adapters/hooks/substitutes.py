"""Hooks of diffusers that run in a module's place, as its caches over steps do."""

from __future__ import annotations

from typing import Any

from torch import nn

PASSING = (
    "TextKVCacheBlockHook",
    "TransformerBlockSkipHook",
    "FeedForwardSkipHook",
    "AttentionProcessorSkipHook",
    "PeftInputAutocastDisableHook",
)
"""Those that keep no image tokens for later."""


def find_substitutes(module: nn.Module) -> list[Any]:
    """The hooks that may return for this module what they kept from an earlier step."""
    registry = vars(module).get("_diffusers_hook")
    hooks = getattr(registry, "hooks", {}).values()
    return [hook for hook in hooks if hasattr(hook, "new_forward") and type(hook).__name__ not in PASSING]
