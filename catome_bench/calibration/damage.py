"""What every candidate costs in fidelity and saves in time, group by group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import product
from statistics import mean
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from catome_adapters import MergeRecipe, MergeSite, attach
from catome_bench.calibration.candidates import PARTS, WHOLE, in_part
from catome_bench.calibration.clock import UNMERGED, by_kind, kinds_of_steps, seconds_by_call, timed_blocks
from catome_bench.calibration.measurements import Measurements
from catome_bench.calibration.savings import BlockSeconds, seconds_saved, usual_seconds
from catome_bench.calibration.takes import Takes
from catome_bench.comparison.drawing import DrawnCall, device_of
from catome_bench.models.artist import unmerged_is_fine

Groups = Mapping[str, Sequence[MergeSite]]

Measurement = tuple[float, Sequence[BlockSeconds]]
"""The mean squared error of all takes with one setting, and for each the seconds of all blocks."""


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
    every: list[Measurement] = [measurements.of(["unmerged"], partial(draw_timed, takes, groups))]
    found: list[tuple[str, str, dict[str, Measurement]]] = []
    with tqdm(total=len(PARTS) * sum(map(len, fitting.values())), unit="setting", disable=not progress) as bar:

        def run(group: str, name: str, part: str) -> Measurement:
            draw = partial(draw_timed, takes, groups, group, in_part(candidates[name], part))
            every.append(measurements.of([group, name, part], draw))
            bar.update()
            return every[-1]

        for group, names in fitting.items():
            by_candidate = run_settings(group, names, partial(run, group), every)
            found += [(group, name, runs) for name, runs in by_candidate.items()]
            bar.update(len(PARTS) * len(names) - sum(map(len, by_candidate.values())))
    usual = usual_by_take(every)
    return [
        Effect(group, name, part, one[0], saved_in(group, one, list(runs.values()), usual))
        for group, name, runs in found
        for part, one in runs.items()
    ]


def run_settings(
    group: str, names: Sequence[str], run: Callable[[str, str], Measurement], every: Sequence[Measurement]
) -> dict[str, dict[str, Measurement]]:
    """The runs of one group by candidate and part: all of them in the whole run, and the best ones in its parts.

    Not measured in parts is what saves nothing in the whole run, or no more than another one that is closer.

    Args:
        group: The group.
        names: Its candidates.
        run: Draws with a candidate in a part of the run.
        every: All runs so far, with those that `run` adds.
    """
    runs = {name: {WHOLE: run(name, WHOLE)} for name in names}
    usual = usual_by_take(every)
    figures = {name: (one[WHOLE][0], saved_in(group, one[WHOLE], [one[WHOLE]], usual)) for name, one in runs.items()}
    for name, (error, saved) in figures.items():
        is_beaten = any(less < error and more >= saved for less, more in figures.values())
        if saved > 0 and not is_beaten:
            runs[name] |= {part: run(name, part) for part in PARTS if part != WHOLE}
    return runs


def draw_timed(takes: Takes, groups: Groups, merging: str = "", recipe: MergeRecipe | None = None) -> Measurement:
    """Draw every take with a recipe in one group, or without, and time the blocks of all groups."""
    drawn: list[DrawnCall] = []
    pictures: list[BlockSeconds] = []
    with unmerged_is_fine(), attach(takes.pipe, recipe, sites=groups[merging]) if recipe else nullcontext() as session:
        for number in range(len(takes)):
            with timed_groups(groups, device_of(takes.pipe)) as calls:
                drawn.append(takes.draw(number))
            kinds = {merging: kinds_of_steps(session.summary().rows)} if session else {}
            pictures.append(
                {group: by_kind(seconds_by_call(some), kinds.get(group, [UNMERGED])) for group, some in calls.items()}
            )
    return takes.error(drawn), pictures


@contextmanager
def timed_groups(groups: Groups, device: torch.device) -> Iterator[dict[str, list[list[float]]]]:
    """The seconds of every call of each block of each group while the context lasts."""
    with ExitStack() as stack:
        yield {
            group: stack.enter_context(timed_blocks([site.block for site in sites], device))
            for group, sites in groups.items()
        }


def usual_by_take(runs: Sequence[Measurement]) -> list[dict[str, float]]:
    """The seconds of an unmerged call in each group, for each take."""
    return [usual_seconds(pictures) for pictures in zip(*(pictures for _, pictures in runs), strict=True)]


def saved_in(group: str, run: Measurement, runs: Sequence[Measurement], usual: Sequence[Mapping[str, float]]) -> float:
    """The seconds that merging in a group saves in a call of the pipeline, mean over the takes.

    Args:
        group: Where tokens merge.
        run: With this setting.
        runs: With the same one, in whatever parts.
        usual: The seconds of an unmerged call, by group, for each take.
    """
    return mean(
        seconds_saved(group, one, [pictures[take] for _, pictures in runs], usual[take])
        for take, one in enumerate(run[1])
    )
