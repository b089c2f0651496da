"""What came of a comparison: figures, pictures, and whether to keep the recipes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from torch import Tensor

from catome_bench.comparison.rows import UNITS, ComparedRow
from catome_bench.files import whole_file
from catome_bench.views.comparison import render_comparison, save_picture, side_by_side, to_text
from catome_bench.views.speed import pace

RULE = "keep: in the median of the calls it is faster than unmerged, by 1 % or more, and it passes the gate"
LONGEST_NAME = 40
WITHOUT_LPIPS = (
    "LPIPS is left out: its networks are published as pickles only, and nothing but safetensors is loaded here"
)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The same pictures, drawn without and with every recipe; `str()` is a table and a sentence for each recipe.

    Attributes:
        rows: The unmerged pictures, then one row for each recipe.
        gate: Floors for the medians of "psnr" in dB and "ssim".
        settings: The calls, their seeds, and in which order they were made.
        machine: Device and versions.
        notes: What to know about the figures.
    """

    rows: tuple[ComparedRow, ...]
    gate: Mapping[str, float]
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    notes: tuple[str, ...] = field(default=(WITHOUT_LPIPS,))

    @property
    def recipes(self) -> tuple[ComparedRow, ...]:
        """The rows of the recipes."""
        return self.rows[1:]

    @property
    def verdicts(self) -> dict[str, str]:
        """For every recipe, one sentence: what it does, and whether to keep it."""
        return {row.name: _verdict(row, self.gate) for row in self.recipes}

    def passes(self, **floors: float) -> bool:
        """Whether the median picture of every recipe reaches these floors; without any, those of the gate.

        Args:
            floors: `psnr` in dB, `ssim`.

        Raises:
            ValueError: If a floor has another name, or is no number.
        """
        gate = check_gate(floors or self.gate)
        return not any(row.failures(gate) for row in self.recipes)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, for JSON; None stands for the PSNR of equal pictures."""
        about = {"machine": dict(self.machine), "settings": dict(self.settings), "gate": dict(self.gate)}
        rows = [row.to_dict() | {"pictures": list(_files(index, row))} for index, row in enumerate(self.rows)]
        answers = {"verdicts": self.verdicts, "kept": [row.name for row in self.recipes if not _faults(row, self.gate)]}
        return about | {"notes": list(self.notes), "rule": RULE} | answers | {"rows": rows}

    def to_json(self) -> str:
        """Everything but the pictures, as a JSON object."""
        return json.dumps(self.to_dict(), indent=2)

    def save(self, folder: str | Path) -> Path:
        """Write `side-by-side.png`, every picture as a PNG of its own, and then `comparison.json`.

        A file that is there is replaced, as a whole or not at all.

        Returns:
            The path of `comparison.json`.

        Raises:
            OSError: If a file cannot be written.
        """
        folder = Path(folder)
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        for index, row in enumerate(self.rows):
            for name, picture in _files(index, row).items():
                save_picture(picture, folder / name)
        with whole_file(folder / "side-by-side.png") as part:
            side_by_side({row.name: row.shown for row in self.rows}).savefig(part, dpi=110)
        with whole_file(folder / "comparison.json") as part:
            part.write_text(self.to_json() + "\n", encoding="utf-8")
        return folder / "comparison.json"

    def __str__(self) -> str:
        return "\n".join([to_text(render_comparison(self.to_dict())), RULE, *self.notes, *self.verdicts.values()])


def check_gate(gate: Mapping[str, float]) -> dict[str, float]:
    """The floors of a gate.

    Raises:
        ValueError: If one has another name, or is no number.

    Examples:
        >>> check_gate({"psnr": 30})
        {'psnr': 30}
    """
    for name, floor in gate.items():
        if name not in UNITS or isinstance(floor, bool) or not isinstance(floor, int | float):
            raise ValueError(f"gate is {name}={floor!r}; expected a number for {' or '.join(UNITS)}, such as psnr=30")
    return dict(gate)


def _verdict(row: ComparedRow, gate: Mapping[str, float]) -> str:
    faults = _faults(row, gate)
    if not row.merged or row.psnr is None:
        return f"{row.name}: {' and '.join(faults)}: drop"
    speed, psnr, worst = row.speedup.median, row.psnr.median, row.psnr.worst
    likeness = f"at {psnr:.1f} dB"
    if psnr == inf:
        likeness = (
            "with the same pictures" if worst == inf else f"with mostly the same pictures, the worst at {worst:.1f} dB"
        )
    answer = f"drop, since {' and '.join(faults)}" if faults else "keep"
    return f"{row.name}: {'as fast' if round(speed, 2) == 1 else pace(speed)} {likeness}: {answer}{_doubt(row)}"


def _faults(row: ComparedRow, gate: Mapping[str, float]) -> list[str]:
    """Why not to keep a recipe."""
    if not row.merged:
        return ["nothing merges at this size"]
    return row.failures(gate) + (["it is no faster"] if round(row.speedup.median, 2) <= 1 else [])


def _doubt(row: ComparedRow) -> str:
    """What to say where other calls might well have answered otherwise."""
    low, high = row.speedup.interval
    if len(row.shown) == 1:
        return "; it is one call: draw with more seeds to be sure"
    return f"; its speed-up scatters from {low:.2f} to {high:.2f}: draw with more seeds" if low < 1 < high else ""


def _files(index: int, row: ComparedRow) -> dict[str, Tensor]:
    """The pictures of a row by the names of their files."""
    # Of a recipe's file, whose path may be longer than a name can be.
    name = "".join(letter if letter.isalnum() else "-" for letter in row.name)[-LONGEST_NAME:]
    return {f"pictures/{call}-{index}-{name}.png": picture for call, picture in enumerate(row.shown)}
