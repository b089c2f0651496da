"""What every candidate costs in fidelity and saves in time, group by group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from statistics import mean, median
from typing import Any, NamedTuple

from tqdm import tqdm

from catome_adapters import MergeRecipe, MergeSite, attach
from catome_bench.calibration.candidates import PARTS, WHOLE, in_part
from catome_bench.calibration.clock import kinds_of_steps, seconds_by_call, seconds_saved, timed_blocks
from catome_bench.calibration.partial import Measurements
from catome_bench.calibration.takes import Takes
from catome_bench.comparison.drawing import device_of
from catome_bench.models.artist import unmerged_is_fine

Groups = Mapping[str, Sequence[MergeSite]]


class Effect(NamedTuple):
    """What one setting does by itself.

    Attributes:
        group: The group of blocks whose tokens merge.
        candidate: How.
        part: When.
        error: Mean squared error of the finished pictures.
        saved: Seconds of a call of the pipeline; negative if it is slower.
    """

    group: str
    candidate: str
    part: str
    error: float
    saved: float


def find_refusals(pipe: Any, groups: Groups, candidates: Mapping[str, MergeRecipe]) -> dict[str, dict[str, str]]:
    """Why candidates do not fit, by group and candidate."""
    refusals: dict[str, dict[str, str]] = {group: {} for group in groups}
    for group, candidate in product(groups, candidates):
        try:
            with unmerged_is_fine(), attach(pipe, candidates[candidate], sites=groups[group]):
                pass
        except ValueError as error:
            refusals[group][candidate] = str(error)
    return refusals


def measure_effects(
    takes: Takes,
    groups: Groups,
    candidates: Mapping[str, MergeRecipe],
    measurements: Measurements,
    refusals: Mapping[str, Mapping[str, str]],
    progress: bool,
) -> list[Effect]:
    """Every candidate in every group and part of the run.

    What saves no time in the whole run of a group is not measured in its parts.
    """
    effects: list[Effect] = []
    losing: set[tuple[str, str]] = set()
    settings = [one for one in product(groups, candidates, PARTS) if one[1] not in refusals[one[0]]]
    for group, candidate, part in tqdm(settings, unit="setting", disable=not progress):
        if (group, candidate) in losing:
            continue
        sites, recipe = groups[group], in_part(candidates[candidate], part)
        unmerged = measurements.of([group], lambda sites=sites: time_unmerged(takes, sites))
        found = measurements.of(
            [group, candidate, part],
            lambda sites=sites, recipe=recipe, unmerged=unmerged: measure_effect(takes, sites, recipe, unmerged),
        )
        effects.append(Effect(group, candidate, part, *found))
        if part == WHOLE and effects[-1].saved <= 0:
            losing.add((group, candidate))
    return effects


def time_unmerged(takes: Takes, sites: Sequence[MergeSite]) -> list[float]:
    """For every take, the median seconds of a group's blocks in a call of the network; right before its candidates."""
    return [median(seconds) for _, seconds in _draw_timed(takes, sites)]


def measure_effect(
    takes: Takes, sites: Sequence[MergeSite], recipe: MergeRecipe, unmerged: Sequence[float]
) -> tuple[float, float]:
    """The error of a recipe at some sites, and the seconds that it saves in a call of the pipeline."""
    drawn: list[Any] = []
    saved: list[float] = []
    with unmerged_is_fine(), attach(takes.pipe, recipe, sites=sites) as session:
        for (one, seconds), base in zip(_draw_timed(takes, sites), unmerged, strict=True):
            drawn.append(one)
            saved.append(seconds_saved(seconds, kinds_of_steps(session.summary().rows), base))
    return takes.error(drawn), mean(saved)


def _draw_timed(takes: Takes, sites: Sequence[MergeSite]) -> Iterator[tuple[Any, list[float]]]:
    """What is drawn in each take, and the seconds of the blocks in each call of the network."""
    blocks, device = [site.block for site in sites], device_of(takes.pipe)
    for number in range(len(takes)):
        with timed_blocks(blocks, device) as calls:
            drawn = takes.draw(number)
        yield drawn, seconds_by_call(calls)
