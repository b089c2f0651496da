"""What was chosen for a model, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def render_choice(results: Mapping[str, Any]) -> Table:
    """What the tokens of each group do in each part of the run, and what that does by itself: `Calibration.to_dict`."""
    table = Table("blocks", "merge", "when", caption="PSNR and seconds of each row by itself", caption_justify="left")
    for name in ("PSNR", "saved"):
        table.add_column(name, justify="right")
    for group in results["groups"]:
        chosen = [_cells(one) for one in results["choice"] if one["group"] == group] or [("left whole",)]
        for number, cells in enumerate(chosen):
            table.add_row("" if number else group, *cells)
    return table


def _cells(effect: Mapping[str, Any]) -> tuple[str, ...]:
    psnr = "same" if effect["psnr"] is None else f"{effect['psnr']:.1f} dB"
    return effect["candidate"], effect["part"], psnr, f"{effect['saved']:.3g} s"
