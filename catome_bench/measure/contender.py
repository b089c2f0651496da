"""One way to run a call, as a race takes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor, nn

Phases = Mapping[str, Callable[[], object]]
"""The kinds of step that a contender has, by name, each with a function that makes the next call such a step."""

ALWAYS: Phases = MappingProxyType({"every step": lambda: None})
"""The phases of a contender whose steps are all alike."""


class Contender(NamedTuple):
    """One way to run a call.

    Attributes:
        module: The module to call, and to compile.
        inputs: Its positional arguments.
        phases: Its kinds of step; the first one starts a run.
        free: Name of the contender that shows the best this one could reach.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    phases: Phases = ALWAYS
    free: str | None = None


MakeContender = Callable[[ExitStack], Contender]
"""Builds a contender; whatever has to be undone after the race goes on the stack."""
