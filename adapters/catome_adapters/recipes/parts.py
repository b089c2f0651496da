"""A recipe whose cells change in the course of a run, as several whose cells do not."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from catome_adapters.recipes.recipe import MergeRecipe


def in_parts(recipe: MergeRecipe) -> list[MergeRecipe]:
    """One recipe for each kind of cells, each of which merges in its own part of the run.

    Raises:
        ValueError: If `during` is "auto", since it is unknown what network this is for.

    Examples:
        >>> from catome_core import Lattice
        >>> recipe = MergeRecipe(Lattice(), scope="keys", stride=1, during=(0.5, 1.0), later=((0.25, 2), (0.5, 4)))
        >>> [(one.stride, one.during) for one in in_parts(recipe)]
        [(1, (0.5, 0.625)), (2, (0.625, 0.75)), (4, (0.75, 1.0))]
    """
    strides = [recipe.stride, *(stride for _, stride in recipe.later)]
    return [
        replace(recipe, stride=stride, during=part, later=())
        for stride, part in zip(strides, pairwise(recipe.part_bounds), strict=True)
    ]


def weighted_parts(recipe: MergeRecipe) -> list[tuple[MergeRecipe, float]]:
    """The same recipes, each with its share of the steps that merge.

    Examples:
        >>> from catome_core import Lattice
        >>> recipe = MergeRecipe(Lattice(), scope="keys", during=(0.5, 1.0), later=((0.25, 4),))
        >>> [(one.stride, share) for one, share in weighted_parts(recipe)]
        [(2, 0.25), (4, 0.75)]
    """
    return [(one, share_of_run(one) / share_of_run(recipe)) for one in in_parts(recipe)]


def share_of_run(recipe: MergeRecipe) -> float:
    """Share of a run's steps in which tokens merge.

    Examples:
        >>> share_of_run(MergeRecipe(during=(0.25, 0.75)))
        0.5
    """
    first, last = recipe.merging_part
    return last - first
