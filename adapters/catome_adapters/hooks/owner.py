"""Forward hooks that copies of their module do not inherit."""

from __future__ import annotations

from typing import Any


class HookOwner:
    """Has forward hooks as methods; in a copy of the module, or one that is unpickled, they do nothing.

    Attributes:
        is_copy: Whether this is such a copy, which has no other attributes.
    """

    is_copy = False

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _make_copy, (type(self),)


def _make_copy(kind: type[HookOwner]) -> HookOwner:
    owner = kind.__new__(kind)
    owner.is_copy = True
    return owner
