"""Keep the keys that attention compares."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from catome_core.attention.intercept import bind_fused

if TYPE_CHECKING:
    from jaxtyping import Float


class RecordKeys(TorchFunctionMode):
    """While this context is open, keeps the keys of fused attention, and changes nothing.

    Attributes:
        keys: The keys of the last attention as it compares them, after norms and rotary embeddings. None before the
            first.

    Examples:
        >>> import torch
        >>> query, key = torch.zeros(1, 1, 2, 8), torch.zeros(1, 1, 3, 8)
        >>> with RecordKeys() as record:
        ...     attended = scaled_dot_product_attention(query, key, key)
        >>> record.keys is key
        True
    """

    keys: Float[Tensor, "batch heads keys channels"] | None

    def __init__(self) -> None:
        super().__init__()
        self.keys = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Keep the keys; everything passes."""
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            self.keys = bind_fused(args, kwargs)["key"]
        return func(*args, **kwargs)
