"""What `catome bench` wrote, as a part of the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from catome_bench.report.html import element, facts, plot, table
from catome_bench.report.part import Part, likeness
from catome_bench.report.results import Results
from catome_bench.views.scatter import draw_front, is_finite
from catome_bench.views.speed import pace
from catome_bench.views.tables import render_measured

FLOOR = 40.0
"""PSNR in dB, above which pictures are hard to tell apart."""

Measured = Mapping[str, Any]


def show_bench(results: Results) -> Part:
    """Every table, with the front of speed-up and fidelity where pictures were drawn, and the machine."""
    found = results.found
    body = [piece for one in found["tables"] for piece in _show_table(one)]
    known = {name: found[name] for name in ("date", "suite", "repeats", "not_begun") if name in found}
    body += [facts("Settings", known), facts("Machine", found["machine"])]
    conclusions = [_conclude(one, total) for one, total in _drawn(found["tables"])]
    tables = f"{len(found['tables'])} tables, measured on {found['machine']['device']}"
    return Part(f"{'; '.join(conclusions) or tables}.", "".join(body))


def _show_table(measured: Measured) -> Iterator[str]:
    yield element("h3", " ".join(filter(None, (measured["level"], measured["case"], measured["mode"]))))
    rendered = measured["note"] or render_measured(measured)
    yield element("p", rendered) if isinstance(rendered, str) else table(rendered)
    for _, total in _drawn([measured]):
        points = [row for row in _rows(measured, total) if is_finite(row)]
        if points:
            yield plot(f"PSNR by speed-up, {total} steps", partial(draw_front, points, f"{total} steps"))


def _drawn(tables: list[Measured]) -> Iterator[tuple[Measured, int]]:
    """Every table of pictures, with each number of steps."""
    for one in tables:
        if one["level"] == "pipeline" and not one["note"]:
            yield from ((one, total) for total in dict.fromkeys(row["steps"] for row in one["rows"]))


def _rows(measured: Measured, total: int) -> list[dict[str, Any]]:
    return [row for row in measured["rows"] if row["steps"] == total]


def _conclude(measured: Measured, total: int) -> str:
    ours = [row for row in _rows(measured, total) if row["family"] == "ours" and "note" not in row]
    # Equal pictures have no PSNR.
    close = [row for row in ours if row["psnr"]["median"] is None or row["psnr"]["median"] >= FLOOR]
    where = f"{measured['case']}, {total} steps"
    if not close:
        return f"{where}: no recipe keeps {FLOOR:g} dB"
    best = max(close, key=lambda row: row["speedup"]["median"])
    return f"{where}: {best['subject']} draws {pace(best['speedup']['median'])}, {likeness(best['psnr']['median'])}"
