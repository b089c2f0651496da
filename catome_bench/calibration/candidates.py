"""What may happen to the tokens of a group of blocks, and in which part of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from catome_adapters import RECIPES, MergeRecipe
from catome_bench.races.variants import fixed_share
from catome_core import CheckpointSchedule

WHOLE = "whole run"
PARTS = {WHOLE: (0.0, 1.0), "early": (0.0, 0.25), "middle": (0.25, 0.5), "late": (0.5, 1.0)}
"""Parts of the run as fractions of its steps, short where they count for more; the whole run is measured first."""

LATTICES = {"1/2 of the keys": (1, 2), "1/4 of the keys": 2, "1/8 of the keys": (2, 4), "1/16 of the keys": 4}
"""Strides of lattices."""
MATCHED_SCOPES = ("keys", "attention", "block")


def candidates(schedule: CheckpointSchedule | None) -> dict[str, MergeRecipe]:
    """Every candidate by name: lattices, and half of the tokens matched; without a schedule, the lattices alone.

    Examples:
        >>> list(candidates(None))
        ['1/2 of the keys', '1/4 of the keys', '1/8 of the keys', '1/16 of the keys']
    """
    lattices = {name: replace(RECIPES["close"], stride=stride, levels="all") for name, stride in LATTICES.items()}
    scopes = MATCHED_SCOPES if schedule else ()
    return lattices | {f"half matched, {scope}": half_matched(scope, schedule) for scope in scopes if schedule}


def half_matched(scope: str, schedule: CheckpointSchedule) -> MergeRecipe:
    """Half of the tokens merge with those they are most alike; "all": also where that is predicted to lose time."""
    return replace(fixed_share(0.5, scope=scope), schedule=schedule, levels="all")


def in_part(recipe: MergeRecipe, part: str) -> MergeRecipe:
    """The recipe in one of the `PARTS` of the run.

    Examples:
        >>> in_part(candidates(None)["1/2 of the keys"], "late").during
        (0.5, 1.0)
    """
    return replace(recipe, during=PARTS[part])


def join_parts(recipes: Mapping[str, MergeRecipe]) -> MergeRecipe:
    """One recipe of lattices by the part of the run; a part between them that has none sees all keys.

    Examples:
        >>> half, quarter, *_ = candidates(None).values()
        >>> joined = join_parts({"early": half, "late": quarter})
        >>> joined.during, joined.stride, joined.later
        ((0.0, 1.0), (1, 2), ((0.25, 1), (0.5, 2)))
    """
    names = list(PARTS)
    merging = sorted(names.index(part) for part in recipes)
    parts = names[merging[0] : merging[-1] + 1]
    first, last = PARTS[parts[0]][0], PARTS[parts[-1]][1]
    strides = [recipes[part].stride if part in recipes else 1 for part in parts]
    begins = [(PARTS[part][0] - first) / (last - first) for part in parts]
    changes = [change for before, *change in zip(strides, begins[1:], strides[1:], strict=False) if change[1] != before]
    recipe = next(iter(recipes.values()))
    return replace(recipe, stride=strides[0], during=(first, last), later=tuple(map(tuple, changes)))
