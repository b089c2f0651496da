"""What a recipe leaves to `attach`, which knows the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from catome_adapters.recipes.recipe import MergeRecipe
from catome_adapters.sites.site import MergeSite
from catome_core import Lattice

AFTER_LAYOUT = (0.3, 1.0)
"""What a transformer lays out in the first steps, no later step repairs. Measured on `dit-patch1`: docs/results.md."""


def decide(recipe: MergeRecipe, sites: Sequence[MergeSite]) -> MergeRecipe:
    """The recipe, with what "auto" stands for in a lattice's `near` and in `during`.

    Where self-attention is all that looks around, queries see the cells next to their own token by token, and the first
    steps of a run are left alone. In a UNet convolutions look around, too, and neither is needed.
    """
    policy, during = recipe.policy, recipe.during
    looks_near, denoises = any(site.looks_near for site in sites), all(site.denoises for site in sites)
    if isinstance(policy, Lattice) and policy.near == "auto":
        policy = replace(policy, near=1 if looks_near else None)
    if during == "auto":
        during = AFTER_LAYOUT if looks_near and denoises else (0.0, 1.0)
    return replace(recipe, policy=policy, during=during)
