"""What `catome bench` measures: for each kind of machine, which levels, cases and modes, in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from catome_bench import blocks, networks
from catome_bench.checks import check_reuse
from catome_bench.comparing import Row
from catome_bench.contenders import Entrant, enter_block, enter_rungs
from catome_bench.kernels import HEAD_SIZES, race_kernels
from catome_bench.networks import enter_network
from catome_bench.operations import SHAPES, race_operations, race_windows
from catome_bench.pipeline import PIPELINES
from catome_bench.race import race
from catome_core import TokenGrid
from catome_core.ladder import LADDER

# The top level of Stable Diffusion at 512 pixels; kernels and operations are measured on it.
GRID = TokenGrid((64, 64))

LEVELS = ("block", "check", "kernels", "operations", "ladder", "model", "pipeline")
ORDER = ("eager", "compiled", "cuda graphs", "regional", "")


class Suite(NamedTuple):
    """What a kind of machine measures unless told otherwise.

    Attributes:
        dtype: Of weights and tokens.
        modes: Ways to run blocks; the last is not for whole networks.
        networks: Ways to run whole networks.
        levels: Those of `LEVELS` that run without being named.
        cases: Blocks.
        models: Whole networks.
        repeats: Timed rounds.
        seconds: No measurement begins later than that.
        compiled: Who takes part in compiled races over blocks; None means everybody.
    """

    dtype: torch.dtype
    modes: tuple[str, ...]
    networks: tuple[str, ...]
    levels: tuple[str, ...]
    cases: tuple[str, ...]
    models: tuple[str, ...]
    repeats: int
    seconds: float
    compiled: tuple[str, ...] | None = None


# Compiling takes most of a GPU's time: a graph for each, two for who has checkpoints.
HEADLINES = (
    "unpatched",
    "free attention",
    "free keys",
    "free block",
    "attention, proportional",
    "keys, proportional",
    "block",
    "block, proportional",
)

# What matters most comes first.
GPU_CASES = (
    "flux-1024-single",
    "sdxl-1024-deep",
    "wan-480p",
    "sd15-512",
    "sd15-1024",
    "sdxl-1024-top",
    "flux-1024-double",
    "pixart-1024",
)

SUITES = {
    "cpu": Suite(
        torch.float32,
        ("eager", "compiled"),
        ("eager", "regional"),
        ("block", "check", "kernels", "operations", "ladder"),
        blocks.SMALL_CASES,
        networks.SMALL_NETWORKS,
        7,
        float("inf"),
    ),
    "gpu": Suite(
        torch.bfloat16,
        ("eager", "compiled", "cuda graphs"),
        ("eager", "regional"),
        LEVELS[:-1],
        GPU_CASES,
        tuple(networks.NETWORKS),
        30,
        420.0,
        HEADLINES,
    ),
}
"""A GPU suite ends within eight minutes: what has begun when its seconds are over still ends."""


class Job(NamedTuple):
    """One table: a level, a case and a mode, and how to measure it."""

    level: str
    case: str
    mode: str
    run: Callable[[], Any]

    @property
    def title(self) -> str:
        """Above the table."""
        return ", ".join(part for part in (self.level, self.case, self.mode) if part)


class Setting(NamedTuple):
    """What every measurement of a command shares."""

    suite: Suite
    device: str
    repeats: int

    def options(self) -> dict[str, Any]:
        """For the functions that make their own tensors."""
        return {"repeats": self.repeats, "device": self.device, "dtype": self.suite.dtype}

    def enter(self, case: str, mode: str) -> dict[str, Entrant]:
        """Who takes part in a race over a block."""
        everybody = enter_block(blocks.CASES[case], self.device, self.suite.dtype)
        chosen = everybody if mode == "eager" or self.suite.compiled is None else self.suite.compiled
        return {name: entrant for name, entrant in everybody.items() if name in chosen}


def plan_jobs(setting: Setting, levels: Sequence[str], cases: Sequence[str]) -> list[Job]:
    """Every measurement: first all that is eager, which takes little time, then what has to be compiled."""
    planners = {
        "block": _block_jobs,
        "check": _check_jobs,
        "kernels": _kernel_jobs,
        "operations": _operation_jobs,
        "ladder": _ladder_jobs,
        "model": _model_jobs,
        "pipeline": _pipeline_jobs,
    }
    jobs = [job for level in planners if level in levels for job in planners[level](setting, cases)]
    return sorted(jobs, key=lambda job: ORDER.index(job.mode))


def _block_jobs(setting: Setting, cases: Sequence[str]) -> Iterator[Job]:
    for mode in setting.suite.modes:
        for name in cases or setting.suite.cases:
            if name in blocks.CASES:
                yield Job("block", name, mode, partial(_race_block, setting, name, mode))


def _race_block(setting: Setting, name: str, mode: str) -> list[Row]:
    return race(setting.enter(name, mode), mode, repeats=setting.repeats, device=setting.device)


def _first_block(setting: Setting, cases: Sequence[str]) -> str:
    return next(name for name in (*cases, *setting.suite.cases) if name in blocks.CASES)


def _check_jobs(setting: Setting, cases: Sequence[str]) -> Iterator[Job]:
    name = _first_block(setting, cases)
    for mode in setting.suite.modes:
        yield Job("check", name, mode, partial(_check_block, setting, name, mode))


def _check_block(setting: Setting, name: str, mode: str) -> list[dict[str, Any]]:
    return check_reuse(setting.enter(name, mode), mode, setting.device)


def _kernel_jobs(setting: Setting, cases: Sequence[str]) -> Iterator[Job]:
    for mode in setting.suite.modes[:2]:
        for width in HEAD_SIZES:
            run = partial(race_kernels, width, GRID, 8, 2, mode, **setting.options())
            yield Job("kernels", f"head size {width}", mode, run)


def _operation_jobs(setting: Setting, cases: Sequence[str]) -> Iterator[Job]:
    for mode in setting.suite.modes[:2]:
        run = partial(race_operations, GRID, 320, 2, mode, **setting.options())
        yield Job("operations", f"{GRID.tokens:,} tokens of 320 channels, batch 2", mode, run)
    options = setting.options() | {"repeats": min(3, setting.repeats)}
    run = partial(race_windows, SHAPES, 320, "eager", **options)
    yield Job("operations", "windowed match, 320 channels", "eager", run)


def _ladder_jobs(setting: Setting, cases: Sequence[str]) -> Iterator[Job]:
    name = _first_block(setting, cases)
    for mode in setting.suite.modes[:2]:
        yield Job("ladder", name, mode, partial(_race_rungs, setting, name, mode))


def _race_rungs(setting: Setting, name: str, mode: str) -> list[Row]:
    entrants = enter_rungs(blocks.CASES[name], LADDER, setting.device, setting.suite.dtype)
    return race(entrants, mode, repeats=setting.repeats, device=setting.device)


def _model_jobs(setting: Setting, cases: Sequence[str]) -> Iterator[Job]:
    for mode in setting.suite.networks:
        for name in cases or setting.suite.models:
            if name in networks.NETWORKS:
                yield Job("model", name, mode, partial(_race_network, setting, name, mode))


def _race_network(setting: Setting, name: str, mode: str) -> list[Row]:
    entrants = enter_network(networks.NETWORKS[name], setting.device, setting.suite.dtype)
    return race(entrants, mode, repeats=min(setting.repeats, 5), device=setting.device)


def _pipeline_jobs(setting: Setting, cases: Sequence[str]) -> Iterator[Job]:
    # It loads the shipped models and what draws with them.
    from catome_bench.pictures import run_pictures

    for arch in PIPELINES:
        if arch in (cases or ("unet",)):
            yield Job("pipeline", arch, "", partial(run_pictures, arch=arch, device=setting.device))
