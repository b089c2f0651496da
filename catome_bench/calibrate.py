"""Find the settings that are best for a model, block by block, on pictures of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from math import nextafter
from pathlib import Path
from typing import Any

from catome_adapters import RECIPES, MergeSite, find_sites
from catome_adapters.recipes.calibrated import CalibratedRecipe, identify_sites
from catome_bench.calibration.candidates import PARTS
from catome_bench.calibration.choose import Choice, best_choices
from catome_bench.calibration.damage import find_refusals
from catome_bench.calibration.goal import Fidelity, Goal, Outcome, Speed
from catome_bench.calibration.measure import Found, measure
from catome_bench.calibration.measurements import Measurements
from catome_bench.calibration.result import NAME, Calibration, describe_fit, describe_held_out
from catome_bench.calibration.rounds import reach
from catome_bench.calibration.takes import Takes
from catome_bench.compare import compare
from catome_bench.comparison.calls import check_calls, fingerprint, listed, plain
from catome_bench.comparison.compared import Compared
from catome_bench.comparison.drawing import Call, device_of, is_compiled
from catome_bench.comparison.identity import identify
from catome_bench.measure.environment import describe_environment
from catome_core import checks

__all__ = ["Calibration", "calibrate"]

FLOOR = 40.0
"""In dB, where no goal is given."""
FORMAT = 2
"""Of what is kept of every measurement."""
BESIDE = ("close", "balanced", "fast")
"""The named recipes that the result is held against."""


def calibrate(
    pipe: Any,
    call: Call | Sequence[Call],
    *,
    floor_psnr: float | None = None,
    speedup: float | None = None,
    seeds: Iterable[int] = range(2),
    measurements: str | Path | None = None,
    progress: bool = True,
) -> Calibration:
    """Measure what merging costs and saves in each group of blocks, and choose what is best for one goal.

    Takes as long as hundreds of pictures. They are drawn with every setting of each group by itself; the best choice of
    settings is drawn with, and chosen again by what comes out; and then compared with named recipes on as many
    pictures with other seeds.

    Args:
        pipe: A pipeline of diffusers that is not compiled; nothing may be attached to it.
        call: As for `compare`; several calls make equally many steps.
        floor_psnr: Be as fast as possible at this PSNR, in dB, of the mean squared error; by default 40.
        speedup: Be as close as possible at this speed-up, from the call to the picture, instead.
        seeds: Of every call, for the pictures of the fit; those of the comparison follow the highest of them.
        measurements: A file that keeps what is measured, from which the same call goes on, and another goal begins.
        progress: Whether to show bars, and beforehand the time that it takes at most.

    Returns:
        The recipe, what it does on other pictures, and all figures; `print` shows a table and a sentence.

    Raises:
        RuntimeError: If a session is attached to the pipeline.
        TypeError: If it has no network, a call returns no pictures, or a goal is not a number.
        ValueError: If both goals are given, or one is out of range; if there is no call or seed; if the pipeline is
            compiled, or has no steps or no tokens to merge; if what is drawn is not finite; if nothing saves time at
            this size; or if `measurements` is of another call. Whatever is raised, nothing is left attached.
        OSError: If `measurements` cannot be read or written.

    Examples:
        >>> from catome_bench.models import load_shipped
        >>> pipe = load_shipped()
        >>> calibrate(pipe, {"classes": ["cat"]}, floor_psnr=40, speedup=1.3)
        Traceback (most recent call last):
        ValueError: floor_psnr is 40 and speedup is 1.3; expected one goal: leave one of them out
    """
    _check_goals(floor_psnr, speedup)
    calls, seeds = listed(call), list(seeds)
    sites = _check_pipeline(pipe, calls, seeds)
    settings = _settings(pipe, sites, calls, seeds)
    known = Measurements(Path(measurements) if measurements else None, settings)
    takes = Takes(pipe, calls, seeds)
    found = measure(takes, sites, known, progress)
    goal = Fidelity(FLOOR if floor_psnr is None else floor_psnr) if speedup is None else Speed(speedup, takes.seconds)
    outcome = _choose(takes, found, goal, settings["model"])
    about = {"prompts": len(calls), "steps": found.schedule and found.schedule.of, "date": _today()}
    fit = settings | about | describe_fit(goal, outcome, takes.seconds)
    recipe = CalibratedRecipe(settings["model"], found.recipes(outcome.choice.effects), fit)
    compared = _compare(pipe, recipe, sites, calls, seeds, progress)
    recipe = replace(recipe, fit=fit | {"held_out": describe_held_out(compared)})
    return Calibration(recipe=recipe, compared=compared, found=found, choice=outcome.choice.effects)


def _check_goals(floor_psnr: float | None, speedup: float | None) -> None:
    if floor_psnr is not None and speedup is not None:
        raise ValueError(
            f"floor_psnr is {floor_psnr} and speedup is {speedup}; expected one goal: leave one of them out"
        )
    if floor_psnr is not None:
        checks.number("floor_psnr", floor_psnr, "decibels, such as 40", least=0)
    if speedup is not None:
        checks.number("speedup", speedup, "a number above 1, such as 1.3", least=nextafter(1, 2))


def _check_pipeline(pipe: Any, calls: Sequence[Call], seeds: Sequence[int]) -> list[MergeSite]:
    """Everything that has to hold before the first picture; the sites."""
    check_calls(pipe, calls)
    if not calls or not seeds:
        raise ValueError(f"got {len(calls)} calls and {len(seeds)} seeds; expected at least one of each")
    if is_compiled(pipe):
        raise ValueError("the pipeline is compiled, and every setting would compile it anew; calibrate it uncompiled")
    sites = find_sites(pipe)
    if not sites or not all(site.denoises for site in sites):
        raise ValueError(f"{type(pipe).__name__} has no blocks that run step by step and whose tokens can merge")
    return sites


def _settings(pipe: Any, sites: Sequence[MergeSite], calls: Sequence[Call], seeds: Sequence[int]) -> dict[str, Any]:
    """What the measurements depend on, as JSON values."""
    parameter = next(sites[0].block.parameters())
    about = {"model": identify_sites(sites), "calls": [plain(call) for call in calls], "seeds": list(seeds)}
    about |= {"parts": PARTS, "format": FORMAT, "pipeline": identify(pipe), "inputs": fingerprint(list(calls))}
    machine = describe_environment(str(device_of(pipe)))
    return json.loads(json.dumps(about | {"dtype": str(parameter.dtype), "machine": machine}))


def _choose(takes: Takes, found: Found, goal: Goal, model: str) -> Outcome:
    choices = best_choices(found.effects)
    if len(choices) == 1:
        raise ValueError("no setting saves time in any block at this size; draw larger pictures, or leave it unmerged")

    def draw(choice: Choice) -> Outcome:
        return Outcome(choice, *takes.race(CalibratedRecipe(model, found.recipes(choice.effects))))

    return reach(goal, choices, draw)


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _compare(
    pipe: Any,
    recipe: CalibratedRecipe,
    sites: Sequence[MergeSite],
    calls: Sequence[Call],
    seeds: Sequence[int],
    progress: bool,
) -> Compared:
    """Beside the named recipes that fit the pipeline, on as many other pictures."""
    named = {name: RECIPES[name] for name in BESIDE}
    refused = find_refusals(pipe, {"": sites}, named)[""]
    fitting = {name: one for name, one in named.items() if name not in refused}
    first = max(seeds) + 1
    return compare(pipe, {NAME: recipe, **fitting}, calls, seeds=range(first, first + len(seeds)), progress=progress)
