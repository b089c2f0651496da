"""Functions that a compiler calls once, while it traces, instead of tracing them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def constant_when_compiled(function: Function) -> Function:
    """All that `torch.compiler.assume_constant_result` does, which imports the compiler: that takes seconds."""
    function._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
    return function
