"""What a session did in a run, as data, text and JSON."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from statistics import mean, quantiles
from typing import NamedTuple

from catome_adapters.records import RunLog, SiteStep, StepRecord
from catome_adapters.reports.names import group_name, name_groups

COLUMNS = ("", "steps", "checkpoints", "tokens", "slots", "merged %", "similarity", "overflow")
WIDTHS = (5, 12, 8, 12, 16, 25, 9)
LEGEND = "merged %, similarity to the nearest destination at checkpoints: minimum, quartiles and maximum"
COLUMNS_OF_KEYS = ("", "steps", "checkpoints", "tokens", "keys", "left out %", "", "")
LEGEND_OF_KEYS = "left out %: keys of the grid that a query does not see"


class SessionSummary(NamedTuple):
    """Every site and step of a run, oldest first; printed with one line for the blocks of a transformer.

    Attributes:
        rows: One for each site and step.
        speedup: Predicted, of the networks, for the shares that merged; None where a block's figures do not say it.
        seconds: Measured, of the run's steps that are over; on an asynchronous device, until the last one was
            submitted. None for models without steps.
        timed_steps: Number of these steps.
        memory: Bytes that the plans hold between steps.
        thins_keys: Whether no token merged, and attention saw the keys of a lattice.
    """

    rows: tuple[SiteStep, ...]
    speedup: float | None = None
    seconds: float | None = None
    timed_steps: int = 0
    memory: int = 0
    thins_keys: bool = False

    @property
    def merged_fraction(self) -> float:
        """Share of the tokens that was merged away, mean over sites and steps; 0 before the first step."""
        return mean(row.merged_fraction for row in self.rows) if self.rows else 0.0

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that were run."""
        return tuple(sorted({row.step for row in self.rows}))

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """The steps that recomputed."""
        return tuple(sorted({row.step for row in self.rows if row.checkpoint}))

    @property
    def overflow(self) -> int:
        """Sources that merged below the threshold because kept slots were too few, over the whole run."""
        return sum(row.overflow for row in self.rows)

    def to_json(self) -> str:
        """Everything as a JSON object."""
        totals = {"merged_fraction": self.merged_fraction, "steps": self.steps, "checkpoints": self.checkpoints}
        totals |= {name: getattr(self, name) for name in ("overflow", "speedup", "seconds", "timed_steps", "memory")}
        return json.dumps(totals | {"rows": [row._asdict() for row in self.rows]}, indent=2)

    def __str__(self) -> str:
        if not self.rows:
            return "no step has been run yet"
        groups: dict[tuple[str, int], list[SiteStep]] = defaultdict(list)
        for row in self.rows:
            groups[group_name(row.site), row.tokens].append(row)
        names = name_groups([(name, [row.site for row in rows]) for (name, _), rows in groups.items()])
        lines = [_line(*(COLUMNS_OF_KEYS if self.thins_keys else COLUMNS))]
        lines += [_group_line(name, rows) for name, rows in zip(names, groups.values(), strict=True)]
        lines += [_total_line(self.rows)] if len(groups) > 1 else []
        legend = LEGEND_OF_KEYS if self.thins_keys else LEGEND
        return "\n".join([*lines, legend, *_left_unmerged(self.rows), self._sentence()])

    def _sentence(self) -> str:
        share, steps = self.merged_fraction, _count(len(self.steps), "step")
        if self.thins_keys:
            parts = [f"queries saw {1 - share:.1%} of the keys in {steps}", "nothing to recompute"]
        else:
            parts = [f"{share:.1%} of the tokens merged in {steps}", _count(len(self.checkpoints), "checkpoint")]
            parts += [f"overflow {self.overflow:,}"]
        parts += [f"{self.memory / 2**20:.1f} MiB of extra memory held"]
        parts += [f"predicted {self.speedup:.2f}x for the network"] if self.speedup else []
        only = f" for {_count(self.timed_steps, 'step')}" if self.timed_steps < len(self.steps) else ""
        parts += [f"measured {self.seconds:.2f} s{only}"] if self.seconds else []
        return ", ".join(parts)


def summarize_run(
    records: Sequence[StepRecord], log: RunLog, speedup: float | None, memory: int, thins_keys: bool
) -> SessionSummary:
    """The summary of these records, with the times of the log; reads from the device."""
    rows = tuple(chain.from_iterable(one.rows() for one in records))
    return SessionSummary(rows, speedup, log.seconds, log.timed_steps, memory, thins_keys)


def _group_line(name: str, rows: Sequence[SiteStep]) -> str:
    slots = sorted({row.slots for row in rows})
    ends = dict.fromkeys(f"{end:,}" for end in (slots[0], slots[-1]))
    return _line(name, *_count_steps(rows), f"{rows[0].tokens:,}", "-".join(ends), *_figures(rows))


def _total_line(rows: Sequence[SiteStep]) -> str:
    tokens = {row.site: row.tokens for row in rows}
    return _line("total", *_count_steps(rows), f"{sum(tokens.values()):,}", "", *_figures(rows))


def _count_steps(rows: Sequence[SiteStep]) -> tuple[int, int]:
    return len({row.step for row in rows}), len({row.step for row in rows if row.checkpoint})


def _figures(rows: Sequence[SiteStep]) -> tuple[str, str, str]:
    merged = [f"{share * 100:.0f}" for share in _quartiles([row.merged_fraction for row in rows])]
    similarity = [f"{score:.2f}" for score in _pooled([row.similarity for row in rows if row.similarity])]
    overflow = sum(row.overflow for row in rows)
    return " ".join(merged if len(set(merged)) > 1 else merged[:1]), " ".join(similarity), f"{overflow:,}"


def _left_unmerged(rows: Sequence[SiteStep]) -> list[str]:
    left = [row for row in rows if row.left_unmerged]
    if not left:
        return []
    (sites, steps), (all_sites, all_steps) = (
        (len({row.site for row in some}), len({row.step for row in some})) for some in (left, rows)
    )
    where = f"{sites} of {_count(all_sites, 'site')}, {steps} of {_count(all_steps, 'step')}"
    return [f"left unmerged where too little would merge to gain time: {where}"]


def _quartiles(values: Sequence[float]) -> list[float]:
    """Minimum, quartiles and maximum.

    Examples:
        >>> _quartiles([0.0, 1.0]), _quartiles([0.5])
        ([0.0, 0.25, 0.5, 0.75, 1.0], [0.5, 0.5, 0.5, 0.5, 0.5])
    """
    inner = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return [min(values), *inner, max(values)]


def _pooled(quartiles: Sequence[tuple[float, ...]]) -> list[float]:
    """Of several sites and steps: the least minimum, the means of the quartiles, the largest maximum."""
    if not quartiles:
        return []
    low, *inner, high = zip(*quartiles, strict=True)
    return [min(low), *map(mean, inner), max(high)]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _line(name: object, *columns: object) -> str:
    return f"{name!s:<36}" + "".join(f"{column!s:>{width}}" for column, width in zip(columns, WIDTHS, strict=True))
