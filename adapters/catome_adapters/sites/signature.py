"""The arguments of a call, by name."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Signature:
    """The names of a module's arguments, in their order.

    Examples:
        >>> class Block(nn.Module):
        ...     def forward(self, x, context=None): ...
        >>> signature = Signature.of(Block())
        >>> signature.read(((1, 2), {}), "context"), signature.read(((1,), {"context": 3}), "context")
        (2, 3)
        >>> signature.write(((1, 2), {}), "context", 4)
        ((1, 4), {})
    """

    names: tuple[str, ...]

    @classmethod
    def of(cls, module: nn.Module) -> Signature:
        """Read from the class, because other libraries wrap `forward` on instances."""
        parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
        named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return cls(tuple(one.name for one in parameters if one.kind in named))

    def read(self, call: Arguments, name: str | None) -> Any:
        """The value of an argument, None if it was left out; the first argument if `name` is None."""
        args, kwargs = call
        name = name or self.names[0]
        if name in kwargs:
            return kwargs[name]
        return args[self.names.index(name)] if self._is_positional(call, name) else None

    def by_name(self, call: Arguments) -> dict[str, Any]:
        """The arguments that were given, in the order of the signature, whatever that of the call; others last."""
        args, kwargs = call
        given = dict(zip(self.names, args, strict=False)) | kwargs
        return {name: given[name] for name in self.names if name in given} | given

    def write(self, call: Arguments, name: str | None, value: Any) -> Arguments:
        """The same call with another value of one argument."""
        args, kwargs = call
        name = name or self.names[0]
        if not self._is_positional(call, name):
            return args, kwargs | {name: value}
        index = self.names.index(name)
        return (*args[:index], value, *args[index + 1 :]), kwargs

    def _is_positional(self, call: Arguments, name: str) -> bool:
        return name not in call[1] and name in self.names and self.names.index(name) < len(call[0])
