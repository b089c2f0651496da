"""What follows from the shapes of a call: worked out once in a run, and the same in every step."""

from __future__ import annotations

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


class KnownCalls(dict[Shapes, KnownCall]):
    """What follows from the shapes of a segment's calls; to be cleared before a run, in which other sizes may gain.

    Compiled code calls `work_out`, whose result is a constant to it.
    """

    def __init__(self, first: BlockCall, rules: MergeRules, weights: SiteWeights) -> None:
        super().__init__()
        self.first, self.rules, self.weights = first, rules, weights

    def __missing__(self, shapes: Shapes) -> KnownCall:
        known = self[shapes] = self.work_out(*shapes)
        return known

    def work_out(self, size: GridSize, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> KnownCall:
        """What follows from these shapes.

        Raises:
            ValueError: If the tokens do not fit the grid.
        """
        grid = TokenGrid(size.shape, self.rules.strides(size.shape), self.first.site.prefix)
        front, back = self.first.locate(shape[1], size, grid)
        return self.of_tokens(PlanKey(shape[0], grid, device, dtype), front, back)

    def of_tokens(self, key: PlanKey, front: int = 0, back: int = 0) -> KnownCall:
        """The same where it is known which tokens are those of the grid."""
        return KnownCall(key, front, back, self.rules.pays_off(self.weights, key, torch.compiler.is_compiling()))
