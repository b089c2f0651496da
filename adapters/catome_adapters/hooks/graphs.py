"""How many graphs of a block dynamo may compile while a capacity adapts, or cells change."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from catome_core import LADDER


class RoomForGraphs:
    """While one is open, dynamo accepts as many graphs of a block as the ladder needs: two for every rung.

    That is also room for the kinds of cells of a lattice at several sizes.

    Dynamo gives up on code with more graphs than its `recompile_limit`, which is restored when the last one closes.
    """

    NEEDED = 2 * (len(LADDER) + 1) + 8
    _open: ClassVar[list[RoomForGraphs]] = []
    _before: ClassVar[int] = 0

    def __init__(self) -> None:
        config: Any = torch._dynamo.config  # pyright: ignore[reportPrivateUsage]: the limit has no public name
        if not self._open:
            RoomForGraphs._before = config.recompile_limit
            config.recompile_limit = max(config.recompile_limit, self.NEEDED)
        self._open.append(self)

    def remove(self) -> None:
        """Close it; safe to call again."""
        if self in self._open:
            self._open.remove(self)
            if not self._open:
                config: Any = torch._dynamo.config  # pyright: ignore[reportPrivateUsage]
                config.recompile_limit = self._before
