"""A lattice of keys at one site: what it remembers, and what attention has to know of it."""

from __future__ import annotations

import torch
from torch import Tensor

from catome_adapters.hooks.arguments import AttentionNeeds
from catome_adapters.hooks.forward import ForwardState
from catome_adapters.hooks.memory import SiteMemory
from catome_adapters.records import SitePlan
from catome_adapters.sites.site import MergeSite
from catome_core import Lattice, MergePlan, MovingLattice, TokenGrid


class SiteLattice(SiteMemory):
    """The lattice of one site, or segment, for one of the calls that a step makes of the network.

    Nothing is matched, so no step is a checkpoint. The calls of a step share the lattice, and move alike.
    """

    def __init__(self, name: str, lattice: MovingLattice) -> None:
        self.lattice = lattice
        super().__init__(name)

    def plan_for(self, tokens: Tensor, grid: TokenGrid) -> MergePlan | None:
        """The lattice of this step."""
        return self.lattice(tokens, grid) if keys_left_out(self.lattice.lattice, grid) else None

    def current_plan(self) -> SitePlan:
        """The same share of the keys in every step and sample."""
        if self.key is None:
            return self.plan
        if not self.merged:
            return self.left_unmerged(self.key)
        if self.plan.merged and self.plan.key == self.key:
            return self.plan
        grid = self.key.grid
        kept = grid.sources - keys_left_out(self.lattice.lattice, grid)
        return SitePlan(self.name, self.key, "fill", kept / grid.area, torch.full((self.key.batch,), kept))

    def plan_in_use(self) -> MergePlan | None:
        """The lattice of the last call."""
        _, key, *_, merged = self.current_plan()
        if key is None or not merged:
            return None
        return self.plan_for(torch.empty(1, key.grid.tokens, 1, device=key.device), key.grid)


def needs_of_call(needs: AttentionNeeds, state: ForwardState, site: MergeSite, plan: MergePlan) -> AttentionNeeds:
    """The same for a lattice and one call, whose keys this plan is for: text and other tokens are around the grid."""
    lattice, grid, keys = needs.lattice, state.grid, plan.slot.shape[1]
    assert lattice is not None
    assert grid is not None
    text = keys - state.length
    front = state.front + (text if site.layout.text_side == "front" else 0)
    alone = keys == grid.tokens and cells_are_equal(grid)
    near = lattice.field(grid, front, keys - front - grid.tokens)
    return needs._replace(proportional=needs.proportional and not alone, near=near)


def cells_are_equal(grid: TokenGrid) -> bool:
    """Whether every slot of a lattice on this grid stands for equally many tokens.

    Examples:
        >>> [cells_are_equal(TokenGrid(shape)) for shape in ((4, 6), (5, 6))]
        [True, False]
    """
    dimensions = zip(grid.shape, grid.cells, grid.strides, strict=True)
    return not grid.prefix and all(cells == 1 or cells * stride == length for length, cells, stride in dimensions)


def keys_left_out(lattice: Lattice, grid: TokenGrid) -> int:
    """Number of the grid's keys that a query does not see.

    Examples:
        >>> keys_left_out(Lattice(), TokenGrid((8, 8))), keys_left_out(Lattice(near=8), TokenGrid((8, 8)))
        (48, 0)
    """
    field = lattice.field(grid)
    return grid.sources if field is None else grid.tokens - field.keys
