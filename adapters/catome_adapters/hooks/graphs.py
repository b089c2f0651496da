"""How many graphs of a block dynamo may compile while a capacity adapts, or cells change."""

from __future__ import annotations

from typing import Any, ClassVar
from weakref import finalize

import torch

from catome_core import LADDER


class RoomForGraphs:
    """While one is open, dynamo accepts as many graphs of a block as the ladder needs: two for every rung.

    That is also room for the kinds of cells of a lattice at several sizes.

    Dynamo gives up on code with more graphs than its `recompile_limit`, which is restored when the last one closes,
    unless somebody else has changed it meanwhile.

    Attributes:
        remove: Closes it; safe to call again. A session that goes with its model, and that nobody has detached, closes
            its own.
    """

    NEEDED = 2 * (len(LADDER) + 1) + 8
    _open: ClassVar[int] = 0
    _before: ClassVar[int] = 0
    _raised: ClassVar[int] = 0

    def __init__(self) -> None:
        kind, config = RoomForGraphs, _dynamo_config()
        if not kind._open:
            kind._before, kind._raised = config.recompile_limit, max(config.recompile_limit, kind.NEEDED)
            config.recompile_limit = kind._raised
        kind._open += 1
        self.remove = finalize(self, kind._close)

    @classmethod
    def _close(cls) -> None:
        cls._open -= 1
        config = _dynamo_config()
        if not cls._open and config.recompile_limit == cls._raised:
            config.recompile_limit = cls._before


def _dynamo_config() -> Any:
    return torch._dynamo.config  # pyright: ignore[reportPrivateUsage]: the limit has no public name
