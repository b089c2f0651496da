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
"""Not compiled; `torch.compile`; the same with mode="reduce-overhead"; diffusers' `compile_repeated_blocks`."""

ENTRY_NUMBERS = count()


class CountingBackend:
    """Inductor, with a count of the graphs it compiles."""

    def __init__(self, mode: str) -> None:
        self.graphs = 0
        self.options = list_mode_options("reduce-overhead") if mode == "cuda graphs" else {}

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        """Compile one graph."""
        self.graphs += 1
        return compile_fx(graph, inputs, config_patches=dict(self.options))


def compile_in_mode(module: nn.Module, mode: str, backend: CountingBackend, fullgraph: bool) -> Callable[..., Any]:
    """A callable that runs the module in this mode.

    Args:
        module: The module to run; in mode "regional" its repeated blocks are compiled in place.
        mode: One of `MODES`.
        backend: Compiles the graphs.
        fullgraph: Raise at a graph break.
    """
    if mode == "eager":
        return module
    # Where Dynamo gives up, it marks the code object for all callers; and it records by function name which sizes have
    # changed, and makes them dynamic. So each contender is called by a code object and a name of its own.
    code = _make_entry(module).__code__.replace(co_name=f"entry_{next(ENTRY_NUMBERS)}")

    def compiled(call: Callable[..., Any]) -> Callable[..., Any]:
        entry = FunctionType(code, globals(), closure=_make_entry(call).__closure__)
        # With graph breaks allowed, the extra frame would be one more place to break.
        return torch.compile(entry if fullgraph else call, backend=backend, fullgraph=fullgraph)

    if mode != "regional":
        return compiled(module)
    for block in repeated_blocks(module):
        block._compiled_call_impl = compiled(block._call_impl)
    return module


def _make_entry(call: Callable[..., Any]) -> FunctionType:
    def entry(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    return entry


def repeated_blocks(module: nn.Module) -> Iterable[nn.Module]:
    """The blocks that diffusers' `compile_repeated_blocks` would compile.

    Raises:
        ValueError: If there are none, as there.
    """
    kinds = {kind for part in module.modules() for kind in getattr(part, "_repeated_blocks", None) or ()}
    found = [part for part in module.modules() if type(part).__name__ in kinds]
    if not found:
        raise ValueError(f"{type(module).__name__} has no block of {sorted(kinds)}; use mode 'compiled'")
    return found


def count_breaks() -> int:
    """Graph breaks since the process started."""
    return sum(counters["graph_break"].values())


def count_skips() -> int:
    """How many times inductor gave up on CUDA graphs since the process started."""
    return counters["inductor"]["cudagraph_skips"]
