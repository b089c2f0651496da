"""Compile a module in one of the ways that users do, and count the graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor import list_mode_options
from torch._inductor.compile_fx import compile_fx

MODES = ("eager", "compiled", "cuda graphs", "regional")
"""As it is; `torch.compile`; the same with mode="reduce-overhead"; diffusers' `compile_repeated_blocks`."""

NUMBERS = count()


class Backend:
    """Inductor, counting what it compiles."""

    def __init__(self, mode: str) -> None:
        self.graphs = 0
        self.options = list_mode_options("reduce-overhead") if mode == "cuda graphs" else {}

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        """Compile one graph."""
        self.graphs += 1
        return compile_fx(graph, inputs, config_patches=dict(self.options))


def compile_in_mode(module: nn.Module, mode: str, backend: Backend, fullgraph: bool) -> Callable[..., Any]:
    """The module as this mode calls it."""
    if mode == "eager":
        return module
    # Where the compiler gives up, it marks the code for everybody who runs it; and it remembers by name which sizes
    # have changed, and makes them dynamic. So each contender enters by code of its own, with a name of its own.
    code = _entrance(module).__code__.replace(co_name=f"entrance_{next(NUMBERS)}")

    def compiled(call: Callable[..., Any]) -> Callable[..., Any]:
        entrance = FunctionType(code, globals(), closure=_entrance(call).__closure__)
        # An entrance of its own would be one more place to break.
        return torch.compile(entrance if fullgraph else call, backend=backend, fullgraph=fullgraph)

    if mode != "regional":
        return compiled(module)
    for block in repeated_blocks(module):
        block._compiled_call_impl = compiled(block._call_impl)
    return module


def _entrance(call: Callable[..., Any]) -> FunctionType:
    def entrance(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    return entrance


def repeated_blocks(module: nn.Module) -> Iterable[nn.Module]:
    """What diffusers' `compile_repeated_blocks` would compile.

    Raises:
        ValueError: If there is nothing, as it would.
    """
    kinds = {kind for part in module.modules() for kind in getattr(part, "_repeated_blocks", None) or ()}
    found = [part for part in module.modules() if type(part).__name__ in kinds]
    if not found:
        raise ValueError(f"{type(module).__name__} has no block of {sorted(kinds)}; use mode 'compiled'")
    return found


def count_breaks() -> int:
    """Graph breaks since the process began."""
    return sum(counters["graph_break"].values())


def count_skips() -> int:
    """How often inductor gave up CUDA graphs since the process began."""
    return counters["inductor"]["cudagraph_skips"]
