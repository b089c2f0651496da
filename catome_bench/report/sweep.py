"""What `catome sweep` wrote, as a part of the page."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from catome_bench.report.html import element, facts, grid, plot, table
from catome_bench.report.part import Part
from catome_bench.report.pictures import before_after
from catome_bench.report.results import Results, find_picture
from catome_bench.sweeping.store import Store
from catome_bench.sweeping.takes import Take, all_takes
from catome_bench.views.scatter import draw_front, is_finite
from catome_bench.views.sweep import render_sweep, summarize

MOST_TAKES = 4
"""Every row has a picture of each; a page with all of them could be too large to open."""


def show_sweep(results: Results) -> Part:
    """Tables, speed-up against fidelity, pictures, settings and machines."""
    found = results.found
    sentences = summarize(found)
    body = [
        *map(table, render_sweep(found)),
        *(element("p", sentence, **{"class": "note"}) for sentence in sentences),
        *_front(found["rows"]),
        *_pictures(results),
        facts("Settings", _settings(found["settings"])),
        facts("Recipes", found["settings"]["recipes"]),
        facts("Machine", {"device": ", ".join(found["machines"])}),
    ]
    return Part(f"{sentences[-1] if sentences else 'No pictures'}.", "".join(body))


def _front(rows: list[dict[str, Any]]) -> list[str]:
    points = [{"subject": row["name"]} | row for row in rows if is_finite(row)]
    if not points:
        return []
    return [element("h3", "Speed-up and fidelity"), plot("PSNR by speed-up", partial(draw_front, points))]


def _pictures(results: Results) -> list[str]:
    """Those of the first takes; while others still draw, some of these may not be whole."""
    settings, rows = results.found["settings"], [row["name"] for row in results.found["rows"]]
    takes = all_takes(len(settings["prompts"]), settings["seeds"])[:MOST_TAKES]
    store = Store(results.file.parent)
    figures = [
        _figure(store, rows, take, settings["prompts"]) for take in takes if rows and not store.missing(rows, take)
    ]
    title = "Pictures, the first ones; the others are in the folder"
    return [element("h3", title), grid(figures)] if figures else []


def _figure(store: Store, rows: list[str], take: Take, prompts: list[str]) -> str:
    files = {row: find_picture(store.folder, f"{row}/{take.file}") for row in rows}
    unmerged = files.pop(rows[0])
    return before_after(f"{prompts[take.prompt]}, seed {take.seed}", unmerged, files)


def _settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is shown elsewhere, or could be very long."""
    shown = {name: settings[name] for name in ("tables", "steps", "seeds", "options", "model", "sha256")}
    return shown | {"prompts": len(settings["prompts"])}
