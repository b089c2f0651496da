"""The measurements of `catome bench`: levels, cases and modes, and the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

from catome_bench.commands.setting import Setting
from catome_bench.measure.checks import check_reuse
from catome_bench.measure.race import race
from catome_bench.measure.rows import Row
from catome_bench.models.pipeline import PIPELINES
from catome_bench.races import blocks, networks, never_slower, pictures
from catome_bench.races.contenders import rung_contenders
from catome_bench.races.kernels import HEAD_SIZES, race_kernels
from catome_bench.races.networks import network_contenders
from catome_bench.races.operations import SHAPES, race_operations, race_windows
from catome_core import LADDER, TokenGrid

# The top level of Stable Diffusion at 512 pixels; kernels and operations are measured on it.
GRID = TokenGrid((64, 64))

WITHOUT_CASES = ("kernels", "operations")
ORDER = ("eager", "compiled", "cuda graphs", "regional", "")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One table to measure: a level, a case and a mode, and the function that returns its rows."""

    level: str
    case: str
    mode: str
    run: Callable[[], Any]

    @property
    def title(self) -> str:
        """The title of the table."""
        return ", ".join(part for part in (self.level, self.case, self.mode) if part)


def plan_jobs(setting: Setting, levels: Sequence[str], cases: Sequence[str]) -> list[Job]:
    """All measurements, the eager ones first, which take little time.

    Raises:
        ValueError: If a case has no measurement, or pictures cannot be drawn as they are asked for.
    """
    planners = {
        "block": _block_jobs,
        "check": _check_jobs,
        "kernels": _kernel_jobs,
        "operations": _operation_jobs,
        "ladder": _ladder_jobs,
        "model": _model_jobs,
        "pipeline": _pipeline_jobs,
        "never-slower": _never_slower_jobs,
    }
    chosen = [level for level in planners if level in levels and not (cases and level in WITHOUT_CASES)]
    jobs = [job for level in chosen for job in planners[level](setting, cases)]
    without = set(cases) - {job.case for job in jobs}
    if without:
        raise ValueError(
            f"no measurement of {min(without)} at the levels {', '.join(levels)}; expected a block at block, check or "
            "ladder, a network at model, or a trained one at pipeline or never-slower"
        )
    return sorted(jobs, key=lambda job: ORDER.index(job.mode))


def _block_jobs(setting: Setting, cases: Sequence[str]) -> Iterator[Job]:
    for mode, name in product(setting.suite.modes, _blocks(setting, cases)):
        yield Job(level="block", case=name, mode=mode, run=partial(_race_block, setting, name, mode))


def _race_block(setting: Setting, name: str, mode: str) -> list[Row]:
    return race(setting.contenders(name, mode), mode, repeats=setting.repeats, device=setting.device)


def _blocks(setting: Setting, cases: Sequence[str]) -> list[str]:
    return [name for name in cases or setting.suite.cases if name in blocks.CASES]


def _check_jobs(setting: Setting, cases: Sequence[str]) -> Iterator[Job]:
    for name, mode in product(_blocks(setting, cases)[:1], setting.suite.modes):
        yield Job(level="check", case=name, mode=mode, run=partial(_check_block, setting, name, mode))


def _check_block(setting: Setting, name: str, mode: str) -> list[dict[str, Any]]:
    return check_reuse(setting.contenders(name, mode), mode, setting.device)


def _kernel_jobs(setting: Setting, cases: Sequence[str]) -> Iterator[Job]:
    for mode in setting.suite.modes[:2]:
        for width in HEAD_SIZES:
            run = partial(race_kernels, width, GRID, 8, 2, mode, **setting.options())
            yield Job(level="kernels", case=f"head size {width}", mode=mode, run=run)


def _operation_jobs(setting: Setting, cases: Sequence[str]) -> Iterator[Job]:
    for mode in setting.suite.modes[:2]:
        run = partial(race_operations, GRID, 320, 2, mode, **setting.options())
        yield Job(level="operations", case=f"{GRID.tokens:,} tokens of 320 channels, batch 2", mode=mode, run=run)
    options = setting.options() | {"repeats": min(3, setting.repeats)}
    run = partial(race_windows, SHAPES, 320, "eager", **options)
    yield Job(level="operations", case="windowed match, 320 channels", mode="eager", run=run)


def _ladder_jobs(setting: Setting, cases: Sequence[str]) -> Iterator[Job]:
    # What a block could reach is known for those that take an image.
    names = [name for name in _blocks(setting, cases) if blocks.CASES[name].rows is None]
    for name, mode in product(names[:1], setting.suite.modes[:2]):
        yield Job(level="ladder", case=name, mode=mode, run=partial(_race_rungs, setting, name, mode))


def _race_rungs(setting: Setting, name: str, mode: str) -> list[Row]:
    contenders = rung_contenders(blocks.CASES[name], LADDER, setting.device, setting.suite.dtype)
    return race(contenders, mode, repeats=setting.repeats, device=setting.device)


def _model_jobs(setting: Setting, cases: Sequence[str]) -> Iterator[Job]:
    for mode in setting.suite.networks:
        for name in cases or setting.suite.models:
            if name in networks.NETWORKS:
                yield Job(level="model", case=name, mode=mode, run=partial(_race_network, setting, name, mode))


def _race_network(setting: Setting, name: str, mode: str) -> list[Row]:
    contenders = network_contenders(networks.NETWORKS[name], setting.device, setting.suite.dtype)
    return race(setting.only(contenders), mode, repeats=min(setting.repeats, 5), device=setting.device)


def _pipeline_jobs(setting: Setting, cases: Sequence[str]) -> Iterator[Job]:
    for arch in PIPELINES:
        if arch in (cases or ("unet",)):
            pictures.check_subjects(arch, setting.subjects, setting.pictures.get("steps", pictures.STEPS))
            yield Job(
                level="pipeline",
                case=arch,
                mode="",
                run=partial(
                    pictures.run_pictures,
                    arch=arch,
                    only=setting.subjects or None,
                    device=setting.device,
                    **setting.pictures,
                ),
            )


def _never_slower_jobs(setting: Setting, cases: Sequence[str]) -> Iterator[Job]:
    if setting.subjects:
        raise ValueError(f"never-slower draws with every named recipe; leave out the subject {setting.subjects[0]!r}")
    options = {"repeats": min(setting.repeats, 3), "device": setting.device, "steps": setting.pictures.get("steps")}
    # The smallest first: there it is hardest to gain.
    sizes = [setting.pictures["size"]] if "size" in setting.pictures else never_slower.STEPS_BY_SIZE
    for size, arch in product(sizes, PIPELINES):
        if arch in (cases or never_slower.ARCHS):
            run = partial(never_slower.run_never_slower, arch=arch, size=size, **options)
            yield Job(level="never-slower", case=arch, mode="", run=run)
