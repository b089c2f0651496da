"""Hearing of the calls of somebody else's object, and leaving it as it was."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Generic, Self, TypeVar

Listener = TypeVar("Listener")


class Heard:
    """Stands in for one method of one object, with its signature; a copy of the object has its own method again."""

    def __init__(self, owner: Any, name: str, call: Callable[..., Any]) -> None:
        self.owner, self.name, self.call = owner, name, call
        self.method = getattr(owner, name)
        functools.update_wrapper(self, self.method)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the owner's users call."""
        return self.call(self.method, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        twin = memo[id(self.owner)]
        return getattr(type(twin), self.name).__get__(twin)


class Hearing(Generic[Listener]):
    """Instance attributes that stand in for methods of one object, until the last listener leaves.

    Attributes:
        owner: The object.
        listeners: Whom to tell.
    """

    mark = "catome_hearing"

    def __init__(self, owner: Any) -> None:
        self.owner: Any = owner
        self.listeners: list[Listener] = []
        calls = {name: call for name, call in self._calls().items() if hasattr(owner, name)}
        stand_ins = {name: Heard(owner, name, call) for name, call in calls.items()} | {self.mark: self}
        self.before = {name: vars(owner).get(name) for name in stand_ins}
        vars(owner).update(stand_ins)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of the object is not heard."""

    @classmethod
    def listen(cls, owner: Any, listener: Listener) -> Self:
        """Tell `listener` from now on."""
        hearing = vars(owner).get(cls.mark) or cls(owner)
        hearing.listeners.append(listener)
        return hearing

    def stop(self, listener: Listener) -> None:
        """Tell `listener` no more; the last to leave restores the object."""
        self.listeners.remove(listener)
        if self.listeners:
            return
        for name, value in self.before.items():
            if value is None:
                del vars(self.owner)[name]
            else:
                vars(self.owner)[name] = value

    def _calls(self) -> Mapping[str, Callable[..., Any]]:
        """By the name of a method: what is called with the method itself, and with its arguments."""
        raise NotImplementedError
