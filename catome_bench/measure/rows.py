"""Rows of a table, from timings: speed-up, efficiency, the mean step of a schedule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from catome_bench.measure.timing import Timing
from catome_core import PAPER_SCHEDULES

CHECKPOINT_SHARE = len(PAPER_SCHEDULES["config_3"].steps) / PAPER_SCHEDULES["config_3"].of


@dataclass
class Row:
    """One row of a table: a contender in one phase.

    Attributes:
        subject: Name of the contender.
        phase: "every step", "checkpoint", "reuse", or "config_3", which is the mean step of that schedule.
        mode: One of `modes.MODES`.
        timing: None if it did not run.
        graphs: Graphs compiled before timing began.
        breaks: Graph breaks before timing began.
        recompiles: Graphs compiled during timing, when every input had been seen already.
        skips: How many times inductor gave up on CUDA graphs.
        note: Why it did not run, or not as one graph.
        speedup: Over the unpatched contender in the same mode.
        efficiency: Share of the possible saving that was reached.
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
        """All fields in one flat dictionary, those of the timing included; for JSON."""
        values = asdict(self)
        del values["timing"]
        return values | (self.timing._asdict() if self.timing else dict.fromkeys(Timing._fields))


def describe(error: Exception) -> str:
    """The type and the first line of an error, at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


def mean_steps(rows: Iterable[Row]) -> list[Row]:
    """The mean step of config_3, of which 13 of 50 are checkpoints, for every contender that has checkpoints."""
    rows = list(rows)
    reuse = {row.subject: row.timing for row in rows if row.timing and row.phase == "reuse"}
    return [
        Row(row.subject, "config_3", row.mode, _mean_timing(row.timing, reuse[row.subject]), note=row.note)
        for row in rows
        if row.timing and row.phase == "checkpoint" and row.subject in reuse
    ]


def _mean_timing(checkpoint: Timing, reuse: Timing) -> Timing:
    def mean(one: float, other: float) -> float:
        return CHECKPOINT_SHARE * one + (1 - CHECKPOINT_SHARE) * other

    return Timing(
        mean(checkpoint.median, reuse.median),
        mean(checkpoint.low, reuse.low),
        mean(checkpoint.high, reuse.high),
        max(checkpoint.memory, reuse.memory),
    )


def add_speedups(rows: list[Row], free: Mapping[str, str]) -> list[Row]:
    """Set the speed-up, and the efficiency (unpatched - ours) / (unpatched - free), from the medians of one mode.

    Args:
        rows: Rows of one mode, which are changed in place.
        free: For each contender, the name of the one that shows the best it could reach.
    """
    medians = {row.subject: row.timing.median for row in rows if row.timing and row.phase == "every step"}
    base = medians.get("unpatched")
    for row in rows:
        if base is None or row.timing is None:
            continue
        row.speedup = base / row.timing.median
        best = medians.get(free.get(row.subject, ""))
        # Where the short sequence saves nothing, there is no share of it to report.
        if best is not None and best < base:
            row.efficiency = (base - row.timing.median) / (base - best)
    return rows
