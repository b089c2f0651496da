"""What a recipe costs beside time: memory that it holds between steps, and graphs to compile."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from catome_adapters import SCOPES, MergeRecipe, MergeSite
from catome_adapters.hooks.between import group_sites
from catome_adapters.prediction.seconds import TYPICAL_BATCH, typical_grid
from catome_adapters.prediction.shares import checkpoint_share
from catome_adapters.recipes.parts import in_parts
from catome_core import Lattice, MovingLattice, PairCache


def held_bytes(sites: Sequence[MergeSite], recipe: MergeRecipe) -> int:
    """Bytes that the plans of these sites hold between steps, at the size of their grids.

    Examples:
        >>> from catome_adapters import RECIPES, find_sites
        >>> from diffusers import DiTTransformer2DModel
        >>> network = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, num_layers=1, sample_size=16)
        >>> [held_bytes(find_sites(network), RECIPES[name]) for name in ("balanced", "adaptive")]
        [8, 7552]
    """
    groups = group_sites(sites, SCOPES[recipe.scope].blocks_per_segment(recipe.segment, len(sites)))
    return sum(_held(group[0], recipe) for group in groups)


def describe_graphs(recipe: MergeRecipe, denoises: bool) -> str:
    """How many graphs each kind of block compiles to, or the network as a whole."""
    unmerged = "" if recipe.during == (0.0, 1.0) else ", and one more for the steps that do not merge"
    return f"{_graphs_of_merging(recipe, denoises)}{unmerged}"


def _graphs_of_merging(recipe: MergeRecipe, denoises: bool) -> str:
    if isinstance(recipe.policy, Lattice):
        steps = "all steps" if recipe.during == (0.0, 1.0) else "all steps that merge"
        kinds = len(in_parts(recipe))
        number = {2: "two"}.get(kinds, kinds)
        return f"one graph for {steps}" if kinds == 1 else f"{number} graphs for {steps}, one for each kind of cells"
    if not denoises or checkpoint_share(recipe) == 1:
        return "one graph, which recomputes the pairs in every call"
    rung = " for every rung of the ladder in use" if recipe.policy.adapts else ""
    return f"two graphs{rung}: one recomputes the pairs, one reuses them"


def _held(site: MergeSite, recipe: MergeRecipe) -> int:
    if isinstance(recipe.policy, Lattice):
        return MovingLattice(recipe.policy, device="meta").step.nbytes
    grid = typical_grid(site, recipe)
    assert grid is not None, f"{site.name} has no grid"
    cache = PairCache(recipe.policy, torch.Generator())
    cache.allocate(TYPICAL_BATCH, grid, "meta")
    return sum(buffer.nbytes for buffer in cache.buffers())
