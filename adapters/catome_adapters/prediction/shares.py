"""Which share of the tokens merges, and of the steps recompute pairs, as far as a recipe says."""

from __future__ import annotations

from catome_adapters.hooks.lattices import keys_left_out
from catome_adapters.recipes.recipe import MergeRecipe
from catome_core import Lattice, TokenGrid

TYPICAL_STEPS = 50
TYPICAL_REMOVED = 0.5
"""Share of the tokens that merges where the data will decide it."""


def assumed_share(grid: TokenGrid, recipe: MergeRecipe) -> float:
    """Share of the tokens that merges: what a fixed capacity leaves; half where the data will decide it.

    Of a lattice, the share of the keys that a query does not see.
    """
    if isinstance(recipe.policy, Lattice):
        return keys_left_out(recipe.policy, grid) / grid.tokens
    most = grid.sources / grid.tokens
    return min(TYPICAL_REMOVED, most) if recipe.policy.capacity is None else share_at(grid, recipe.policy.capacity)


def share_at(grid: TokenGrid, capacity: float | None) -> float:
    """Share of the tokens that a capacity merges away, if it is used up.

    Examples:
        >>> share_at(TokenGrid((4, 4)), 0.25), share_at(TokenGrid((4, 4)), None)
        (0.5, 0.0)
    """
    return (grid.sources - grid.kept(capacity)) / grid.tokens


def checkpoint_share(recipe: MergeRecipe, total: int = TYPICAL_STEPS) -> float:
    """Share of the steps of a run that recompute the pairs; by default of a run of usual length."""
    return len(recipe.schedule.rescaled(total).steps) / total
