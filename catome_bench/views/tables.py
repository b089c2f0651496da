"""The rows of the benchmark as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.table import Table

from catome_bench.views.speed import with_interval

UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))


def render_measured(measured: Mapping[str, Any], title: str = "") -> Table | str:
    """One measured table, rendered as its level requires."""
    if measured["note"]:
        return f"{title}: {measured['note']}"
    if measured["level"] == "pipeline":
        return render_pictures(measured)
    if measured["level"] == "never-slower":
        return render_never_slower(measured)
    return (render_checks if measured["level"] == "check" else render_rows)(title, measured["rows"])


def render_rows(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Timed rows of one level, case and mode; columns that are empty in every row are left out."""
    cells = [_row_cells(row) for row in rows]
    columns = [name for name in cells[0] if any(line[name] for line in cells)] if cells else []
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="left" if name in ("subject", "phase", "note") else "right")
    for row, line in zip(rows, cells, strict=True):
        table.add_row(*(line[name] for name in columns), style="bold" if row["subject"] == "unpatched" else None)
    return table


def _row_cells(row: Mapping[str, Any]) -> dict[str, str]:
    # The mean step of a schedule is computed from others, so it has no graphs.
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
    """The rows of `check_reuse`."""
    table = Table("subject", "same bits twice", "waits for the device", "note", title=title, title_justify="left")
    for row in rows:
        table.add_row(row["subject"], _answer(row["identical"]), _answer(row["host_reads"]), row["note"])
    return table


def _answer(value: bool | None) -> str:
    return {None: "not known", True: "yes", False: "no"}[value]


def render_pictures(results: Mapping[str, Any]) -> Table:
    """The rows of `run_pictures`, fastest first within each number of steps."""
    title = f"{results['size']} x {results['size']} pixels, pictures: {results['images']}; median (95 % interval)"
    notes = {row["subject"]: row["note"] for row in results["rows"] if "note" in row}
    caption = "\n".join(f"{subject}: {note}" for subject, note in notes.items())
    table = Table("steps", "subject", "family", title=title, caption=caption or None, caption_justify="left")
    distance = [results["features"]] if results.get("features") else []
    # Results of before this was measured have none.
    undisturbed = ["undisturbed"] if any("undisturbed" in row for row in results["rows"]) else []
    measures = ("PSNR", "5th %", "SSIM", "5th %", *distance, "Frechet", "removed")
    for column in ("s/image", "speed-up", *undisturbed, *measures):
        table.add_column(column, justify="right")
    for total in dict.fromkeys(row["steps"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["steps"] == total]
        for row in sorted(rows, key=_slowness):
            table.add_row(*_picture_cells(row), style="bold" if row["family"] == "unmerged" else None)
        table.add_section()
    return table


def _slowness(row: Mapping[str, Any]) -> float:
    return -row["speedup"]["median"] if "speedup" in row else 0.0


def _picture_cells(row: Mapping[str, Any]) -> list[str]:
    head = [str(row["steps"]), row["subject"], row["family"]]
    if "note" in row:
        return head
    return [
        *head,
        f"{row['seconds']:.2f}",
        with_interval(row["speedup"]),
        *([f"{row['undisturbed']:.2f}x"] if "undisturbed" in row else []),
        _decibels(row["psnr"]),
        _decibel(row["psnr"]["worst"]),
        f"{row['ssim']['median']:.4f}",
        f"{row['ssim']['worst']:.4f}",
        *([f"{row['distance']['median']:.3g}"] if "distance" in row else []),
        f"{round(row['frechet'], 6):.3g}",
        f"{row['removed']:.0%}",
    ]


def _decibels(spread: Mapping[str, Any]) -> str:
    if spread["median"] is None:
        return "same"
    low, high = map(_decibel, spread["interval"])
    return f"{_decibel(spread['median'])} dB ({low}-{high})"


def _decibel(value: float | None) -> str:
    return "same" if value is None else f"{value:.1f}"


def render_never_slower(results: Mapping[str, Any]) -> Table:
    """The rows of `run_never_slower`."""
    title = f"{results['case']}, {results['size']} x {results['size']} pixels"
    table = Table("steps", "recipe", title=title, title_justify="left")
    for column in ("rounds", "s/image", "speed-up", "undisturbed", "merged", "left unmerged"):
        table.add_column(column, justify="right")
    for row in results["rows"]:
        table.add_row(str(row["steps"]), row["subject"], *_never_slower_cells(row))
    return table


def _never_slower_cells(row: Mapping[str, Any]) -> list[str]:
    if "note" in row:
        return ["", "", row["note"].partition(": ")[0]]
    shares = (f"{row[name]:.0%}" for name in ("merged", "unmerged_steps"))
    speedups = (with_interval(row["speedup"]), f"{row['undisturbed']:.2f}x")
    return [str(row["rounds"]), f"{row['seconds']:.2f}", *speedups, *shares]


def render_vits(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `race_vit`, under a line for each fraction."""
    lines = [f"{'':<34}{'tokens':>8}{'ms':>10}{'cosine':>10}{'correct':>10}"]
    for phase, group in groupby(rows, key=lambda row: row["phase"]):
        lines += [phase] if phase else []
        lines += map(_vit_line, group)
    return "\n".join(lines)


def _vit_line(row: Mapping[str, Any]) -> str:
    milliseconds = row["median"] * 1e3
    head = f"{row['subject']:<34}{row['tokens']:>8}{milliseconds:>10.1f}"
    return f"{head}{row['cosine']:>10.4f}{row['correct']:>10.1%}"


def render_demo(results: Mapping[str, Any]) -> Table:
    """The results of the demo."""
    table = Table("", "s/image", "speed-up", "merged", "checkpoints", "PSNR", "SSIM")
    seconds = results["seconds_per_image"]
    table.add_row("baseline", f"{seconds['baseline']:.2f}", "1.00x", "0 %", "-", "-", "-")
    table.add_row(
        "CA-ToMe",
        f"{seconds['merged']:.2f}",
        f"{results['speedup']:.2f}x",
        f"{results['merged_fraction']:.0%}",
        str(len(results["checkpoints"])),
        "same" if results["psnr"] is None else f"{results['psnr']:.1f} dB",
        f"{results['ssim']:.4f}",
    )
    return table
