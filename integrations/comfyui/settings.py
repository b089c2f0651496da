"""What the node is set to: a recipe, at which sizes, and in which part of the run."""

from __future__ import annotations

from dataclasses import dataclass, replace

from catome_adapters import RECIPES, MergeRecipe
from catome_core import Lattice

SHARES = {"as the recipe says": None, "1/2": 2, "1/4": 4, "1/8": 8}
"""Of how many tokens attention sees one."""

CELLS = {2: (1, 2), 4: (2, 2), 8: (2, 4), 16: (4, 4)}
"""Cells by their number of tokens."""


@dataclass(frozen=True)
class Settings:
    """The inputs of the node.

    Args:
        recipe: How to merge. A lattice has no near field, as on every UNet.
        min_tokens: Self-attention of fewer tokens is left alone.
        start_percent: From which part of the sampling on tokens merge, as in all nodes of the host.
        end_percent: Until which part.

    Raises:
        ValueError: If no part of the sampling is between them.
    """

    recipe: MergeRecipe
    min_tokens: int
    start_percent: float
    end_percent: float

    def __post_init__(self) -> None:
        if self.start_percent >= self.end_percent:
            raise ValueError(
                f"CA-ToMe: start_percent is {self.start_percent} and end_percent {self.end_percent}; "
                "expected a smaller start, such as 0.0 and 1.0 for the whole run"
            )


def fitting_recipes() -> list[str]:
    """Names of the recipes that need no mask of attention and leave the rest of a block alone."""
    return [name for name, one in RECIPES.items() if one.scope in ("attention", "keys") and not one.policy.pads]


def choose_recipe(name: str, share: str) -> MergeRecipe:
    """The recipe of this name, with a share of `SHARES`.

    A lattice has cells of as many tokens. Of merged tokens, half of those left are destinations, the others are kept.
    """
    # When tokens merge is for the node's percents to say.
    recipe, parts = replace(RECIPES[name], during=(0.0, 1.0)), SHARES[share]
    if parts is None:
        return recipe
    if isinstance(recipe.policy, Lattice):
        return replace(recipe, stride=CELLS[parts], later=())
    return replace(recipe, stride=CELLS[2 * parts], policy=replace(recipe.policy, capacity=1 / (2 * parts)))
