"""Calling a function with contexts open around it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from catome_adapters.sites.call import Arguments

# torch has no public way to see how many function modes are open, or to close one from outside.
_count_function_modes: Callable[[], int] = torch._C._len_torch_function_stack  # pyright: ignore[reportPrivateUsage]
_pop_function_mode: Callable[[], object] = torch._C._pop_torch_function_stack  # pyright: ignore[reportPrivateUsage]

Contexts = tuple[AbstractContextManager[Any], ...]


def run_within(contexts: Contexts, forward: Callable[..., Any], call: Arguments) -> Any:
    """Call `forward` with all contexts open, the first outermost; afterwards no function mode of theirs is left."""
    if not contexts or torch.compiler.is_compiling():
        return _nest(contexts, forward, call)
    depth = _count_function_modes()
    try:
        return _nest(contexts, forward, call)
    finally:
        # An interrupt may come between the moment a mode is on the stack and the `with` statement that removes it.
        while _count_function_modes() > depth:
            _pop_function_mode()


def _nest(contexts: Contexts, forward: Callable[..., Any], call: Arguments) -> Any:
    if not contexts:
        return forward(*call[0], **call[1])
    with contexts[0]:
        return _nest(contexts[1:], forward, call)
