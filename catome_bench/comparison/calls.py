"""The calls of a pipeline that are made again and again: whether they can be, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from hashlib import sha256
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

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


def fingerprint(value: Any) -> str:
    """SHA-256 of a call with all that it holds: numbers of tensors, arrays and pictures; of a function its code and the
    values that it reads, also those of its module; of any other object its kind.

    Examples:
        >>> first, other = (fingerprint({"prompt": "a cat", "image": torch.full((2,), one)}) for one in (0.0, 1.0))
        >>> first == other
        False
    """
    digest = sha256()
    for part in _parts(value, set()):
        digest.update(part)
    return digest.hexdigest()


def _parts(value: Any, functions: set[int]) -> Iterator[bytes]:
    """Of a value; `functions` are those, by id, that came before, which may call one another."""
    yield type(value).__name__.encode()
    if isinstance(value, Mapping):
        yield from _parts(list(value.items()), functions)
    elif isinstance(value, list | tuple):
        yield str(len(value)).encode()
        for one in value:
            yield from _parts(one, functions)
    elif isinstance(value, set | frozenset):
        yield repr(sorted(map(repr, value))).encode()
    elif isinstance(value, np.ndarray | np.generic):
        yield repr((value.shape, str(value.dtype))).encode()
        yield value.tobytes()
    elif isinstance(value, Tensor):
        yield repr((value.shape, value.dtype)).encode()
        yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(value, Image.Image):
        yield repr((value.size, value.mode)).encode()
        yield value.tobytes()
    elif isinstance(value, partial):
        yield from _parts([value.func, value.args, value.keywords], functions)
    elif isinstance(value, MethodType):
        yield from _parts([value.__func__, getattr(value.__self__, "__dict__", None)], functions)
    elif isinstance(value, FunctionType):
        if id(value) not in functions:
            functions.add(id(value))
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            read = [value.__globals__.get(name) for name in _names(value.__code__)]
            parts = [value.__qualname__, value.__code__, cells, read, value.__defaults__, value.__kwdefaults__]
            yield from _parts(parts, functions)
    elif isinstance(value, bytes):
        yield value
    elif isinstance(value, CodeType):
        yield value.co_code
        # Bytecode has names and constants by their index; among the latter is the code of functions inside.
        yield from _parts([value.co_names, value.co_consts], functions)
    else:
        yield repr(plain(value)).encode()


def _names(code: CodeType) -> Iterator[str]:
    """The names that a function reads, and the functions in it: those of its module, and of attributes."""
    yield from code.co_names
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _names(one)


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
