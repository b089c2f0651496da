"""The benchmark's rows as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))


def render_rows(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Timed rows of one level, case and mode; a column that is empty in all of them is left out."""
    cells = [_cells(row) for row in rows]
    columns = [name for name in cells[0] if any(line[name] for line in cells)] if cells else []
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="left" if name in ("subject", "phase", "note") else "right")
    for row, line in zip(rows, cells, strict=True):
        table.add_row(*(line[name] for name in columns), style="bold" if row["subject"] == "unpatched" else None)
    return table


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    # The mean of a schedule is computed, not compiled.
    ran = row["median"] is not None and row["mode"] != "eager" and row["phase"] != "config_3"
    return {
        "subject": row["subject"],
        "phase": row["phase"],
        "median (q1 - q3)": "" if row["median"] is None else _spread(row),
        "speed-up": "" if row["speedup"] is None else f"{row['speedup']:.2f}x",
        "efficiency": "" if row["efficiency"] is None else f"{row['efficiency']:.2f}",
        "graphs/breaks/recompiles": f"{row['graphs']}/{row['breaks']}/{row['recompiles']}" if ran else "",
        "no CUDA graph": str(row["skips"] or ""),
        "memory": "" if row["memory"] is None else f"{row['memory'] / 2**20:.1f} MiB",
        "error": "" if row["error"] is None else f"{row['error']:.1e}",
        "note": row["note"],
    }


def _spread(row: Mapping[str, Any]) -> str:
    scale, unit = next((pair for pair in UNITS if row["median"] >= pair[0]), UNITS[-1])
    median, low, high = (f"{row[name] / scale:.3g}" for name in ("median", "low", "high"))
    return f"{median} {unit} ({low} - {high})"


def render_checks(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """What `check_reuse` found."""
    table = Table("subject", "same bits twice", "waits for the device", "note", title=title, title_justify="left")
    for row in rows:
        table.add_row(row["subject"], _answer(row["identical"]), _answer(row["host_reads"]), row["note"])
    return table


def _answer(value: bool | None) -> str:
    return {None: "not known", True: "yes", False: "no"}[value]
