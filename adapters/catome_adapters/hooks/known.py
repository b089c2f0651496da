"""What follows from the shapes of a call: worked out once in a run, and the same in every step."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

import torch

from catome_adapters.hooks.rules import MergeRules
from catome_adapters.sites.call import BlockCall
from catome_adapters.sites.grid import GridSize
from catome_adapters.sites.weights import SiteWeights
from catome_core import PlanKey, TokenGrid

Shapes = tuple[GridSize, torch.Size, torch.dtype, torch.device]
"""Of a call: the size of the grid, and what the tokens (batch, tokens, channels) of the first block are."""


class KnownCall(NamedTuple):
    """What follows from the shapes of a call.

    Attributes:
        key: The tokens of the grid.
        front: Number of tokens in front of them.
        back: Number of tokens behind them.
        pays_off: Whether merging gains time for such tokens in this run.
    """

    key: PlanKey
    front: int
    back: int
    pays_off: bool


class KnownKind:
    """What follows from the shapes of the calls of segments that are alike.

    Attributes:
        kept: To be cleared before a run, in which other sizes may gain. Nothing is kept of compiled code: there it is a
            constant, and no graph depends on what is kept.
        part: The part of the run, from 0, whose cells hold.
    """

    def __init__(self, rules: MergeRules, weights: SiteWeights) -> None:
        self.rules, self.weights, self.part = rules, weights, 0
        self.kept: dict[Shapes, KnownCall] = {}

    def work_out(self, first: BlockCall, shapes: Shapes) -> KnownCall:
        """What follows from these shapes at the first block of a segment; kept, unless it is compiled.

        Raises:
            ValueError: If the tokens do not fit the grid.
        """
        size, shape, dtype, device = shapes
        # Those of later parts of the run, too: what does not fit is an error at once.
        grid = self._grids(size.shape, first.site.prefix)[self.part]
        front, back = first.locate(shape[1], size, grid)
        known = self.of_tokens(PlanKey(shape[0], grid, device, dtype), front, back)
        if not torch.compiler.is_compiling():
            self.kept[shapes] = known
        return known

    def of_tokens(self, key: PlanKey, front: int = 0, back: int = 0) -> KnownCall:
        """The same where it is known which tokens are those of the grid."""
        return KnownCall(key, front, back, self.rules.pays_off(self.weights, key, torch.compiler.is_compiling()))

    def stays_small(self, known: KnownCall) -> bool:
        """Whether such tokens gain nothing, with the cells that hold nor with any that come later in the run."""
        if known.pays_off:
            return False
        later = self._grids(known.key.grid.shape, known.key.grid.prefix)[self.part + 1 :]
        return not any(self.rules.pays_off(self.weights, known.key._replace(grid=grid), False) for grid in later)

    def _grids(self, shape: tuple[int, ...], prefix: int) -> list[TokenGrid]:
        """The layout in each part of the run."""
        return [TokenGrid(shape, self.rules.strides(shape, part), prefix) for part in range(self.rules.parts)]


class KnownCalls:
    """The calls of all segments of one attachment.

    Attributes:
        part: The part of the run, from 0, whose cells hold.
    """

    def __init__(self, rules: MergeRules) -> None:
        self.rules, self.part = rules, 0
        self._kinds: dict[Hashable, KnownKind] = {}

    def of_kind(self, kind: Hashable, weights: SiteWeights) -> KnownKind:
        """Those of segments that are alike; `kind` is all that distinguishes them here."""
        return self._kinds.setdefault(kind, KnownKind(self.rules, weights))

    def begin_part(self, part: int) -> None:
        """From now on the cells of this part of the run hold."""
        if part != self.part:
            self._begin(part)

    def reset(self) -> None:
        """The first cells hold, and nothing is known."""
        self._begin(0)

    def _begin(self, part: int) -> None:
        self.part = part
        for calls in self._kinds.values():
            calls.part = part
            calls.kept.clear()
