"""What every candidate costs in fidelity and saves in time, group by group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import product
from statistics import mean
from typing import Any, NamedTuple

from tqdm import tqdm

from catome_adapters import MergeRecipe, MergeSite, attach
from catome_bench.calibration.candidates import PARTS, WHOLE, in_part
from catome_bench.calibration.clock import (
    UNMERGED,
    Samples,
    by_kind,
    kinds_of_steps,
    seconds_by_call,
    seconds_saved,
    timed_blocks,
)
from catome_bench.calibration.measurements import Measurements
from catome_bench.calibration.takes import Takes
from catome_bench.comparison.drawing import Drawn, device_of
from catome_bench.models.artist import unmerged_is_fine

Groups = Mapping[str, Sequence[MergeSite]]

Run = tuple[float, Sequence[Samples]]
"""The mean squared error of all takes with one setting, and for each the seconds of the group's blocks."""


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
    """Every candidate in every group, and the best ones in each part of the run."""
    fitting = {group: [name for name in candidates if name not in refusals[group]] for group in groups}
    effects: list[Effect] = []
    with tqdm(total=len(PARTS) * sum(map(len, fitting.values())), unit="setting", disable=not progress) as bar:

        def run(group: str, name: str, part: str) -> Run:
            draw = partial(draw_timed, takes, groups[group], in_part(candidates[name], part))
            found = measurements.of([group, name, part], draw)
            bar.update()
            return found

        for group, names in fitting.items():
            unmerged = measurements.of([group], partial(draw_timed, takes, groups[group], None))
            by_candidate = run_settings(names, partial(run, group), unmerged)
            for name, runs in by_candidate.items():
                every = [unmerged, *runs.values()]
                effects += [Effect(group, name, part, one[0], saved_in(one, every)) for part, one in runs.items()]
            bar.update(len(PARTS) * len(names) - sum(map(len, by_candidate.values())))
    return effects


def run_settings(names: Sequence[str], run: Callable[[str, str], Run], unmerged: Run) -> dict[str, dict[str, Run]]:
    """The runs of one group by candidate and part: all of them in the whole run, and the best ones in its parts.

    Not measured in parts is what saves nothing in the whole run, or no more than another one that is closer.
    """
    runs = {name: {WHOLE: run(name, WHOLE)} for name in names}
    figures = {name: (one[WHOLE][0], saved_in(one[WHOLE], [unmerged, one[WHOLE]])) for name, one in runs.items()}
    for name, (error, saved) in figures.items():
        is_beaten = any(less < error and more >= saved for less, more in figures.values())
        if saved > 0 and not is_beaten:
            runs[name] |= {part: run(name, part) for part in PARTS if part != WHOLE}
    return runs


def draw_timed(takes: Takes, sites: Sequence[MergeSite], recipe: MergeRecipe | None) -> Run:
    """Draw every take with a recipe at some sites, or without, and time their blocks."""
    blocks, device = [site.block for site in sites], device_of(takes.pipe)
    drawn: list[Drawn] = []
    samples: list[Samples] = []
    with unmerged_is_fine(), attach(takes.pipe, recipe, sites=sites) if recipe else nullcontext() as session:
        for number in range(len(takes)):
            with timed_blocks(blocks, device) as calls:
                drawn.append(takes.draw(number))
            kinds = kinds_of_steps(session.summary().rows) if session else [UNMERGED]
            samples.append(by_kind(seconds_by_call(calls), kinds))
    return takes.error(drawn), samples


def saved_in(run: Run, runs: Sequence[Run]) -> float:
    """The seconds that merging saves in a call of the pipeline, mean over the takes."""
    return mean(seconds_saved(one, [others[1][take] for others in runs]) for take, one in enumerate(run[1]))
