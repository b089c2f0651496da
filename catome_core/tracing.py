"""Calls without values: shape inference and tracing, which must not leave anything behind."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake


def has_values(tokens: Tensor) -> bool:
    """Whether a call with these tokens computes numbers, and does not just find shapes or record operations.

    Examples:
        >>> has_values(torch.ones(2)), has_values(torch.ones(2, device="meta"))
        (True, False)
    """
    if torch.compiler.is_exporting():
        return False
    return torch.compiler.is_dynamo_compiling() or not (tokens.is_meta or is_fake(tokens))


def refuse_jit_trace() -> None:
    """Raise RuntimeError within `torch.jit.trace`, for which every size of a tensor is a tensor."""
    if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        raise RuntimeError(
            "merging was called in torch.jit.trace, whose sizes are tensors; use torch.export.export or torch.compile"
        )
