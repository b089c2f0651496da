"""Choosing the sites that a recipe is attached to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from catome_adapters.compatibility import check_attachable
from catome_adapters.hooks.scopes import SCOPES
from catome_adapters.prediction.levels import (
    LevelGain,
    choose_levels,
    predict_levels,
    winning_levels,
)
from catome_adapters.prediction.worth import MIN_GAIN
from catome_adapters.recipes.calibrated import CalibratedRecipe
from catome_adapters.recipes.decide import decide
from catome_adapters.recipes.recipe import MergeRecipe
from catome_adapters.sites.site import MergeSite, SkippedSite
from catome_core import Lattice, MergeWarning


class Chosen(NamedTuple):
    """What is attached where.

    Attributes:
        sites: By recipe.
        left_out: The other sites, with the reasons.
    """

    sites: dict[MergeRecipe, list[MergeSite]]
    left_out: list[SkippedSite]


def choose_calibrated(
    recipe: CalibratedRecipe, found: Sequence[MergeSite], sites: Sequence[MergeSite] | None
) -> Chosen:
    """The sites of each of its recipes, and those that are left whole.

    Raises:
        ValueError: If it was calibrated on another model, a recipe does not fit its sites, or sites are given.
    """
    if sites is not None:
        raise ValueError("sites is given with a CalibratedRecipe, which names the sites itself; leave sites out")
    recipe.check_model(found)
    by_name = {site.name: site for site in found}
    chosen: dict[MergeRecipe, list[MergeSite]] = {}
    for one, names in recipe.grouped().items():
        where = [by_name[name] for name in names]
        decided = decide(one, where)
        check_attachable(where, decided)
        chosen.setdefault(decided, []).extend(where)
    whole = [site for site in found if site.name not in recipe.recipes]
    return Chosen(chosen, [SkippedSite(site.name, "the calibrated recipe leaves it whole", site) for site in whole])


def choose_gaining(
    recipe: MergeRecipe, network: float, found: Sequence[MergeSite], sites: Sequence[MergeSite] | None
) -> Chosen:
    """The sites that are given, or those at the levels that the recipe chooses, and the others.

    Args:
        recipe: The recipe.
        network: Seconds of a call of the networks.
        found: All sites.
        sites: Those that are given.

    Raises:
        ValueError: If the model has none of the levels, a site is given twice, or the recipe does not fit one.
    """
    auto = sites is None and recipe.levels == "auto" and SCOPES[recipe.scope].predictable
    gains = predict_levels(found, recipe) if auto else {}
    minimum = MIN_GAIN * network
    if sites is None:
        levels = choose_levels(found, recipe.levels, gains, minimum)
        chosen = [site for site in found if site.level in levels]
    else:
        chosen = _distinct(found)
    check_attachable(chosen, recipe)
    if gains and not winning_levels(gains, minimum):
        _warn_of_loss(chosen, recipe, gains, network)
    return Chosen({recipe: chosen}, [_left_out(site, recipe, gains) for site in found if site not in chosen])


def _left_out(site: MergeSite, recipe: MergeRecipe, gains: Mapping[int, LevelGain]) -> SkippedSite:
    reason = f"level {site.level} is not chosen (levels={recipe.levels!r})"
    if site.level in gains:
        level = gains[site.level]
        too_little = ", less than a quarter of the best level's gain" if level.gain > 0 else ""
        reason += f": {level} per call of the network{too_little}"
    return SkippedSite(site.name, reason, site)


def _warn_of_loss(
    sites: Sequence[MergeSite], recipe: MergeRecipe, gains: Mapping[int, LevelGain], network: float
) -> None:
    level = sites[0].level
    tokens = " x ".join(map(str, sites[0].shape or ()))
    by_keys = isinstance(recipe.policy, Lattice)
    remedy = "give a larger stride" if by_keys else 'merge more (scope="block"), recompute less often'
    verdict = f"gain less than {MIN_GAIN:.0%} of the {network * 1e3:.2f} ms that a call of the network takes"
    MergeWarning.warn(
        f"merging is predicted to {verdict if gains[level].gain > 0 else 'lose time'} at the model's default size: "
        f"level {level}, {len(sites)} sites of {tokens} tokens, {gains[level]}. It stays attached, and merges in calls "
        f'whose size gains. Draw larger pictures, {remedy}, or merge anyway: levels="all"'
    )


def _distinct(sites: Sequence[MergeSite]) -> list[MergeSite]:
    """The sites of several networks, each with a name of its own.

    Raises:
        ValueError: If a block is among them twice.
    """
    blocks = [id(site.block) for site in sites]
    twice = [site.name for site in sites if blocks.count(id(site.block)) > 1]
    if twice:
        raise ValueError(f"sites has {twice[0]} more than once; pass every site once")
    seen: Counter[str] = Counter()
    named: list[MergeSite] = []
    for site in sites:
        seen[site.name] += 1
        named.append(site if seen[site.name] == 1 else replace(site, name=f"{site.name} ({seen[site.name]})"))
    return named
