"""From timings to rows of a table: speed-up, efficiency, the mean step of a schedule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from catome_bench.timing import Timing
from catome_core import PAPER_SCHEDULES

CHECKPOINTS = len(PAPER_SCHEDULES["config_3"].steps) / PAPER_SCHEDULES["config_3"].of


@dataclass
class Row:
    """One line of a table: a contender in one phase.

    Attributes:
        subject: The contender.
        phase: "every step", "checkpoint", "reuse", or "config_3": the mean step of that schedule.
        mode: One of `compiling.MODES`.
        timing: None if it did not run.
        graphs: Compiled before timing began.
        breaks: Graph breaks before timing began.
        recompiles: Graphs compiled while it was timed, when all had been seen.
        skips: How often inductor gave up CUDA graphs.
        note: Why it did not run, or not in one graph.
        speedup: Over the unpatched subject in the same mode.
        efficiency: Share of the possible saving that is reached.
        error: Largest difference from a reference.
    """

    subject: str
    phase: str
    mode: str
    timing: Timing | None = None
    graphs: int = 0
    breaks: int = 0
    recompiles: int = 0
    skips: int = 0
    note: str = ""
    speedup: float | None = None
    efficiency: float | None = None
    error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Flat, for JSON."""
        values = asdict(self)
        del values["timing"]
        return values | (self.timing._asdict() if self.timing else dict.fromkeys(Timing._fields))


def describe(error: Exception) -> str:
    """An error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


def mean_steps(rows: Iterable[Row]) -> list[Row]:
    """The mean step of config_3 for everyone who has checkpoints: 13 of 50 steps are."""
    phases = {(row.subject, row.phase): row for row in rows if row.timing}
    means = []
    for (subject, phase), row in phases.items():
        reuse = phases.get((subject, "reuse"))
        if phase == "checkpoint" and reuse is not None:
            means.append(Row(subject, "config_3", row.mode, _mean(row.timing, reuse.timing), note=row.note))
    return means


def _mean(checkpoint: Any, reuse: Any) -> Timing:
    seconds = (CHECKPOINTS * a + (1 - CHECKPOINTS) * b for a, b in zip(checkpoint[:3], reuse[:3], strict=True))
    return Timing(*seconds, max(checkpoint.memory, reuse.memory))


def compare(rows: list[Row], free: Mapping[str, str]) -> list[Row]:
    """Fill in speed-up and efficiency = (unpatched - ours) / (unpatched - free), all medians of one mode."""
    medians = {row.subject: row.timing.median for row in rows if row.timing and row.phase == "every step"}
    base = medians.get("unpatched")
    for row in rows:
        if base is None or row.timing is None:
            continue
        row.speedup = base / row.timing.median
        best = medians.get(free.get(row.subject, ""))
        # Where the short sequence saves nothing, no share of it can be named.
        if best is not None and best < base:
            row.efficiency = (base - row.timing.median) / (base - best)
    return rows
