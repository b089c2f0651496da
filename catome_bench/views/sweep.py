"""The tables of a sweep, and the sentences below them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from math import log
from typing import Any

from rich.table import Table

from catome_bench.views.speed import pace, with_interval
from catome_core import PAPER_SCHEDULES

TITLES = {
    "thresholds": "Thresholds, pairs matched in every step (Table I of the paper)",
    "configurations": "Checkpoints of 50 steps (Table II of the paper)",
    "caching": "Checkpoints at t = 0.7 (Table III of the paper)",
    "comparison": "Methods (Table IV of the paper)",
}

Found = Mapping[str, Any]
"""What `Swept.to_dict` gives."""


def render_sweep(found: Found) -> list[Table]:
    """A table for each of those that were asked for; none while others still draw."""
    if found["missing"] and not found["rows"]:
        return []
    rows = {row["name"]: row for row in found["rows"]}
    drawn = {name: [rows[one] for one in names] for name, names in found["settings"]["rows"].items() if rows}
    return [
        _configurations() if name == "configurations" else _render(name, drawn[name], found)
        for name in found["settings"]["tables"]
        if name == "configurations" or name in drawn
    ]


def summarize(found: Found) -> list[str]:
    """What to know about the figures, and how every recipe compares with fewer steps in the same time."""
    return [*_states(found), *_notes(found), *_beside_fewer_steps(found)]


def _render(name: str, rows: Sequence[Found], found: Found) -> Table:
    table = Table(title=TITLES[name], title_justify="left")
    table.add_column("")
    for column in ("s/picture", "speed-up", found["distance"].partition(" (")[0], "PSNR", "SSIM", "merged"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(row["name"], *_cells(row), style="bold" if row["psnr"] is None else None)
    return table


def _cells(row: Found) -> list[str]:
    return [
        f"{row['seconds']:.3g}",
        with_interval(row["speedup"]) if row["psnr"] else "",
        "" if row["distance"] is None else f"{round(row['distance'], 6):.4g}",
        _decibels(row["psnr"]),
        f"{row['ssim']['median']:.4f}" if row["ssim"] else "",
        "" if row["merged"] is None else f"{row['merged']:.0%}",
    ]


def _decibels(spread: Found | None) -> str:
    if spread is None:
        return ""
    return "same" if spread["median"] is None else f"{spread['median']:.1f} dB"


def _configurations() -> Table:
    table = Table("", "checkpoints", title=TITLES["configurations"], title_justify="left")
    for name, schedule in PAPER_SCHEDULES.items():
        table.add_row(name, ", ".join(map(str, schedule.steps)))
    return table


def _states(found: Found) -> Iterator[str]:
    if found["missing"]:
        yield f"{found['missing']} pictures are still to be drawn; the same command draws them, or other processes do"
    if found["rows"]:
        what = "pictures" if found["takes"] > 1 else "picture"
        yield f"{found['takes']} {what} of each row; {found['distance']} to {found['to']}"


def _notes(found: Found) -> Iterator[str]:
    yield from (f"{name} is left out: {reason}" for name, reason in found["settings"]["left_out"].items())
    if len(found["machines"]) > 1:
        yield f"drawn on several machines, whose seconds are not comparable: {', '.join(found['machines'])}"


def _beside_fewer_steps(found: Found) -> Iterator[str]:
    compared = [row for row in found["rows"] if row["name"] in found["settings"]["rows"].get("comparison", ())]
    fewer = [row for row in compared if row["family"] == "fewer steps"]
    for row in compared if fewer else ():
        if row["family"] == "ours":
            nearest = min(fewer, key=partial(_apart, row))
            yield f"{row['name']}: {_figures(row)}; {nearest['name']}, the nearest in time: {_figures(nearest)}"


def _speed(row: Found) -> float:
    return row["speedup"]["median"]


def _figures(row: Found) -> str:
    return f"{pace(_speed(row))}, {_decibels(row['psnr'])}"


def _apart(one: Found, other: Found) -> float:
    """How far two rows are apart in time."""
    return abs(log(_speed(one) / _speed(other)))
