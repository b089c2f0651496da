"""What may happen to the tokens of a group of blocks, and in which part of the run."""

from __future__ import annotations

from dataclasses import replace

from catome_adapters import RECIPES, MergeRecipe
from catome_bench.races.variants import fixed_share
from catome_core import CheckpointSchedule

WHOLE = "whole run"
PARTS = {WHOLE: (0.0, 1.0), "early": (0.0, 1 / 3), "middle": (1 / 3, 2 / 3), "late": (2 / 3, 1.0)}
"""Parts of the run as fractions of its steps; the whole run is measured first."""

LATTICES = {"1/2 of the keys": (1, 2), "1/4 of the keys": 2, "1/8 of the keys": (2, 4), "1/16 of the keys": 4}
"""Strides of lattices."""
MATCHED_SCOPES = ("keys", "attention", "block")


def candidates(schedule: CheckpointSchedule | None) -> dict[str, MergeRecipe]:
    """Every candidate by name: lattices, and half of the tokens matched; without a schedule, the lattices alone.

    Examples:
        >>> list(candidates(None))
        ['1/2 of the keys', '1/4 of the keys', '1/8 of the keys', '1/16 of the keys']
    """
    lattices = {name: replace(RECIPES["balanced"], stride=stride, levels="all") for name, stride in LATTICES.items()}
    scopes = MATCHED_SCOPES if schedule else ()
    return lattices | {f"half matched, {scope}": half_matched(scope, schedule) for scope in scopes if schedule}


def half_matched(scope: str, schedule: CheckpointSchedule) -> MergeRecipe:
    """Half of the tokens merge with those they are most alike; "all": also where that is predicted to lose time."""
    return replace(fixed_share(0.5, scope=scope), schedule=schedule, levels="all")


def in_part(recipe: MergeRecipe, part: str) -> MergeRecipe:
    """The recipe in one of the `PARTS` of the run.

    Examples:
        >>> in_part(candidates(None)["1/2 of the keys"], "late").during
        (0.6666666666666666, 1.0)
    """
    return replace(recipe, during=PARTS[part])
