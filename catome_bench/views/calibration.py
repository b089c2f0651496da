"""What was chosen for a model, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def render_choice(results: Mapping[str, Any]) -> Table:
    """A row for each group of `Calibration.to_dict`: what its tokens do, when, and what that does by itself."""
    table = Table("blocks", "merge", "when", caption="PSNR and seconds of each row by itself", caption_justify="left")
    for name in ("PSNR", "saved"):
        table.add_column(name, justify="right")
    chosen = {one["group"]: one for one in results["choice"]}
    for group in results["groups"]:
        table.add_row(group, *_cells(chosen.get(group)))
    return table


def _cells(effect: Mapping[str, Any] | None) -> tuple[str, ...]:
    if effect is None:
        return ("left whole",)
    psnr = "same" if effect["psnr"] is None else f"{effect['psnr']:.1f} dB"
    return effect["candidate"], effect["part"], psnr, f"{effect['saved']:.3g} s"
