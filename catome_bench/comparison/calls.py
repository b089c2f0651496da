"""The calls of a pipeline that are made again and again: whether they can be, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from catome_adapters import sessions
from catome_bench.comparison.drawing import Call


def check_calls(pipe: Any, calls: Sequence[Call]) -> None:
    """Everything that has to hold before a pipeline draws with and without merging.

    Raises:
        RuntimeError: If the pipeline has a session.
        TypeError: If it has no network.
        ValueError: If a call brings random numbers of its own.
    """
    if found := sessions(pipe):
        raise RuntimeError(f"{found[0]} is attached already; call catome_adapters.detach(pipe) before comparing")
    if any(isinstance(call, Mapping) and "generator" in call for call in calls):
        raise ValueError("a call has a generator; leave it out: every one of the seeds makes its own")


def listed(call: Call | Sequence[Call]) -> list[Call]:
    """One call or several, as a list."""
    return [call] if isinstance(call, Mapping) or callable(call) else list(call)


def plain(value: Any) -> Any:
    """A call as JSON values; what JSON has no words for, by the name of its kind.

    Examples:
        >>> plain({"prompt": "a cat", "steps": (2, 3), "callback": max})
        {'prompt': 'a cat', 'steps': [2, 3], 'callback': 'max'}
    """
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return getattr(value, "__qualname__", type(value).__qualname__)
