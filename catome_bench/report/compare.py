"""What `catome compare` wrote, as a part of the page."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from catome_bench.report.html import element, facts, grid, plot, table
from catome_bench.report.part import Part
from catome_bench.report.pictures import before_after
from catome_bench.report.results import Results, find_picture
from catome_bench.views.comparison import render_comparison
from catome_bench.views.scatter import draw_front, is_finite

MOST_PICTURES = 8
"""Of each recipe; a page with all of them could be too large to open."""


def show_comparison(results: Results) -> Part:
    """Verdicts, table, speed-up against fidelity, pictures, settings and machine."""
    found = results.found
    body = [
        *(element("p", verdict) for verdict in found["verdicts"].values()),
        element("p", found["rule"], **{"class": "note"}),
        table(render_comparison(found)),
        *_front(found["rows"][1:]),
        *_pictures(results),
        *(element("p", note, **{"class": "note"}) for note in found["notes"]),
        facts("Settings", found["settings"] | {"gate": found["gate"]}),
        facts("Recipes", {row["name"]: row["recipe"] for row in found["rows"][1:]}),
        facts("Machine", found["machine"]),
    ]
    return Part(_conclude(found), "".join(body))


def _conclude(found: Mapping[str, Any]) -> str:
    kept = [row for row in found["rows"][1:] if row["name"] in found["kept"]]
    if not kept:
        return f"No recipe is worth keeping here: {'; '.join(found['verdicts'].values())}."
    best = max(kept, key=lambda row: row["speedup"]["median"])
    return f"{found['verdicts'][best['name']]}."


def _front(rows: list[dict[str, Any]]) -> list[str]:
    points = [{"subject": row["name"], "family": "ours"} | row for row in rows if is_finite(row)]
    if not points:
        return []
    return [element("h3", "Speed-up and fidelity"), plot("PSNR by speed-up", partial(draw_front, points))]


def _pictures(results: Results) -> list[str]:
    unmerged, *recipes = results.found["rows"]
    folder, total = results.file.parent, len(unmerged["pictures"])
    calls = _names_of_calls(results.found["settings"])
    figures = [
        before_after(
            calls[number],
            find_picture(folder, unmerged["pictures"][number]),
            {row["name"]: find_picture(folder, row["pictures"][number]) for row in recipes},
        )
        for number in range(min(total, MOST_PICTURES))
    ]
    left_out = f", {MOST_PICTURES} of {total}; the others are in the folder" if total > MOST_PICTURES else ""
    return [element("h3", f"Pictures{left_out}"), grid(figures)]


def _names_of_calls(settings: Mapping[str, Any]) -> list[str]:
    """Of every call with every seed, in the order of the pictures."""
    return [f"{_prompt(call)}, seed {seed}" for call in settings["calls"] for seed in settings["seeds"]]


def _prompt(call: Any) -> str:
    if not isinstance(call, dict):
        return str(call)
    asked = call.get("prompt", call.get("classes", call))
    return " ".join(asked) if isinstance(asked, list) else str(asked)
