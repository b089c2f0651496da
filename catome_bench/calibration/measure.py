"""Everything that is measured before there is a choice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from tqdm import tqdm

from catome_adapters import MergeRecipe, MergeSite
from catome_adapters.recipes.named import EVERY_STEP
from catome_bench.calibration.candidates import PARTS, candidates, in_part, join_parts
from catome_bench.calibration.damage import Effect, find_refusals, measure_effects
from catome_bench.calibration.groups import group_by_setting
from catome_bench.calibration.measurements import Measurements
from catome_bench.calibration.pairs import Layer, average, mean_distance, record_layers
from catome_bench.calibration.schedule import choose_schedule
from catome_bench.calibration.takes import Takes
from catome_core import CheckpointSchedule

MATCHED = "half matched, keys"
"""The candidate that pairs are recorded with."""


class Found(NamedTuple):
    """What was found out about a model.

    Attributes:
        groups: The sites that get one setting.
        candidates: What may happen to their tokens.
        layers: How the pairs change; empty if nothing can be matched.
        schedule: For everything that is matched.
        effects: What each setting does by itself.
        refusals: Why candidates do not fit, by group and candidate.
    """

    groups: dict[str, tuple[MergeSite, ...]]
    candidates: dict[str, MergeRecipe]
    layers: dict[str, Layer]
    schedule: CheckpointSchedule | None
    effects: list[Effect]
    refusals: dict[str, dict[str, str]]

    def recipes(self, effects: Sequence[Effect]) -> dict[str, MergeRecipe]:
        """The recipe of every site that these settings merge at."""
        by_group: dict[str, dict[str, MergeRecipe]] = defaultdict(dict)
        for one in effects:
            by_group[one.group][one.part] = self.candidates[one.candidate]
        recipes = {group: _recipe_of(parts) for group, parts in by_group.items()}
        return {site.name: recipe for group, recipe in recipes.items() for site in self.groups[group]}


def measure(takes: Takes, sites: Sequence[MergeSite], measurements: Measurements, progress: bool) -> Found:
    """The pairs of a run, the schedule that follows from them, and what every setting does.

    Raises:
        ValueError: If the run has fewer than two steps, or not as many in every call.
    """
    groups = group_by_setting(sites)
    refusals = find_refusals(takes.pipe, groups, candidates(EVERY_STEP))
    matched = [site for group, some in groups.items() if MATCHED not in refusals[group] for site in some]
    layers = find_layers(takes, matched, measurements) if matched else {}
    schedule = choose_schedule(mean_distance(layers)) if layers else None
    settings = candidates(schedule)
    if progress:
        tqdm.write(estimate(takes, len(groups) * len(settings) * len(PARTS)))
    effects = measure_effects(takes, groups, settings, measurements, refusals, progress)
    return Found(groups, settings, layers, schedule, effects, refusals)


def _recipe_of(parts: Mapping[str, MergeRecipe]) -> MergeRecipe:
    if len(parts) > 1:
        return join_parts(parts)
    ((part, recipe),) = parts.items()
    return in_part(recipe, part)


def find_layers(takes: Takes, sites: Sequence[MergeSite], measurements: Measurements) -> dict[str, Layer]:
    """The layers of the first picture of every call, on average."""

    def record() -> dict[str, Any]:
        runs = [record_layers(takes.pipe, sites, partial(takes.draw, number)) for number in takes.first_of_calls]
        layers = average(runs)
        if len(mean_distance(layers)) == 1:
            raise ValueError("the run has one step, or its steps are unknown; draw in several, with a scheduler")
        return {name: layer.to_json() for name, layer in layers.items()}

    found: Mapping[str, Any] = measurements.of(["pairs"], record)
    return {name: Layer.from_json(values) for name, values in found.items()}


def estimate(takes: Takes, settings: int) -> str:
    """How long it takes if everything is measured."""
    minutes = settings * len(takes) * takes.seconds / 60
    return f"{settings} settings x {len(takes)} calls x {takes.seconds:.2g} s: at most {minutes:.0f} minutes"
