"""The rows of the paper's tables, and those that are added to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from catome_adapters import RECIPES, MergeRecipe, attach
from catome_adapters.recipes.named import EVERY_STEP
from catome_bench.names import SWEEP_TABLES
from catome_bench.races.peers import ca_tome, tomesd
from catome_bench.races.variants import REFERENCE, Variant
from catome_core import PAPER_SCHEDULES, AdaptiveMerge

THRESHOLDS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SHARES_OF_STEPS = (0.9, 0.8, 0.7)
AFTER_ANOTHER = ("ca-tome",)
"""Rows that are drawn right after another picture: the package keeps the pairs of that one for the first steps."""


def thresholds(top: int) -> dict[str, MergeRecipe]:
    """Table I: pairs above a threshold, matched anew in every step."""
    return {
        f"t={threshold}": replace(paper(top), policy=AdaptiveMerge(threshold=threshold), schedule=EVERY_STEP)
        for threshold in THRESHOLDS
    }


def configurations(top: int) -> dict[str, MergeRecipe]:
    """Table III: one threshold, and the checkpoints of Table II."""
    return {name: replace(paper(top), schedule=schedule) for name, schedule in PAPER_SCHEDULES.items()}


def paper(top: int) -> MergeRecipe:
    """The paper's recipe, which here merges also where it loses time: a level by its number asks for that."""
    return replace(RECIPES["paper"], levels=(top,))


def recipes_of(top: int) -> dict[str, MergeRecipe]:
    """Every recipe that is drawn with, by the name of its row.

    Args:
        top: The level with the most tokens.
    """
    return {**thresholds(top), **configurations(top), "balanced": RECIPES["balanced"]}


def rows_of(tables: Sequence[str], steps: int, top: int) -> dict[str, dict[str, Variant]]:
    """The rows of those of these tables that are drawn; the unmerged row comes first.

    Args:
        tables: Out of `SWEEP_TABLES`.
        steps: Denoising steps of the unmerged row.
        top: The level with the most tokens, where the paper merges.

    Raises:
        ValueError: If a table is unknown, or none is given.

    Examples:
        >>> list(rows_of(["comparison"], 10, 1)["comparison"])
        ['unmerged', 'tomesd', 'ca-tome', 'config_3', 'balanced', '9-steps', '8-steps', '7-steps']
    """
    unknown = [table for table in tables if table not in SWEEP_TABLES]
    if unknown or not tables:
        raise ValueError(f"tables is {list(tables)}; expected at least one of {', '.join(SWEEP_TABLES)}")
    ours = {name: Variant("ours", partial(attach, recipe=one)) for name, one in recipes_of(top).items()}
    tome = {"tomesd": Variant("peer", tomesd)}
    drawn = {
        "thresholds": {name: ours[name] for name in thresholds(top)},
        "caching": tome | {name: ours[name] for name in configurations(top)},
        "comparison": {
            **tome,
            "ca-tome": Variant("peer", ca_tome),
            **{name: ours[name] for name in ("config_3", "balanced")},
            **_fewer(steps),
        },
    }
    return {name: {REFERENCE: Variant("unmerged")} | rows for name, rows in drawn.items() if name in tables}


def _fewer(steps: int) -> dict[str, Variant]:
    shorter = [Variant("fewer steps", share=share) for share in SHARES_OF_STEPS]
    return {f"{one.steps(steps)}-steps": one for one in shorter if one.steps(steps) < steps}
