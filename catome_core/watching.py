"""Seeing what torch's fused attention is called with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from catome_core.intercepting import FUSED


class KeyWatch(TorchFunctionMode):
    """While this context is open, keeps the keys of fused attention, and changes nothing.

    Attributes:
        keys: (batch, heads, keys, channels) of the last attention, as it compares them: behind norms and rotary
            embeddings. None before the first.

    Examples:
        >>> import torch
        >>> query, key = torch.zeros(1, 1, 2, 8), torch.zeros(1, 1, 3, 8)
        >>> with KeyWatch() as watch:
        ...     attended = scaled_dot_product_attention(query, key, key)
        >>> watch.keys is key
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self.keys: Tensor | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Keep the keys; everything passes."""
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            self.keys = (dict(zip(FUSED, args, strict=False)) | kwargs)["key"]
        return func(*args, **kwargs)
