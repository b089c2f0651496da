"""Attaching a recipe, or none, where it is no surprise that nothing may merge."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from catome_adapters import MergeSession, attach
from catome_adapters.recipes.calibrated import Recipe
from catome_bench.models.artist import unmerged_is_fine


@contextmanager
def attached(pipe: Any, recipe: Recipe | None) -> Iterator[MergeSession | None]:
    """Merge while the context lasts, without a warning where nothing merges; None merges nothing."""
    if recipe is None:
        yield None
        return
    with unmerged_is_fine(), attach(pipe, recipe) as session:
        yield session
