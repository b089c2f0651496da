"""Attaching whatever may be compared: a recipe, or one for every site."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from catome_adapters import MergeRecipe, MergeSession, MergeSite, attach, find_sites
from catome_adapters.calibrated import CalibratedRecipe
from catome_bench.models.artist import unmerged_is_fine

AnyRecipe = MergeRecipe | CalibratedRecipe


@contextmanager
def attached(pipe: Any, recipe: AnyRecipe | None) -> Iterator[MergeSession | None]:
    """Merge while the context lasts, without a warning where nothing merges; None merges nothing."""
    with unmerged_is_fine(), ExitStack() as stack:
        found = [stack.enter_context(one) for one in _sessions(pipe, recipe)]
        yield found[0] if found else None


def _sessions(pipe: Any, recipe: AnyRecipe | None) -> Iterator[MergeSession]:
    if isinstance(recipe, MergeRecipe):
        yield attach(pipe, recipe)
    elif recipe is not None:
        sites: dict[MergeRecipe, list[MergeSite]] = defaultdict(list)
        for site in find_sites(pipe):
            if site.name in recipe.recipes:
                sites[recipe.recipes[site.name]].append(site)
        for one, where in sites.items():
            yield attach(pipe, one, sites=where)
