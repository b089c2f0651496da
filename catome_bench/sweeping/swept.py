"""What a sweep has measured, as tables and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catome_bench.files import whole_file
from catome_bench.sweeping.rows import SweptRow
from catome_bench.views.comparison import to_text
from catome_bench.views.sweep import render_sweep, summarize

RESULTS = "results.json"


@dataclass(frozen=True, kw_only=True)
class Swept:
    """The rows of the paper's tables, measured; `str()` is the tables, and a sentence for each recipe.

    Attributes:
        rows: The unmerged pictures first; none while other processes are still drawing.
        settings: Those that the sweep began with.
        takes: How many pictures each row has.
        missing: How many pictures are still to be drawn.
        distance: What the column of the Frechet distance is called.
        to: To which pictures it is measured.
        machines: On which the pictures were drawn.
    """

    rows: tuple[SweptRow, ...]
    settings: Mapping[str, Any]
    takes: int
    missing: int
    distance: str
    to: str
    machines: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON; None stands for the PSNR of equal pictures."""
        return {**vars(self), "rows": [row.to_dict() for row in self.rows], "machines": list(self.machines)}

    def to_json(self) -> str:
        """Everything, as a JSON object."""
        return json.dumps(self.to_dict(), indent=2)

    def save(self, folder: str | Path) -> Path:
        """Write `results.json` into a folder, whole or not at all.

        Returns:
            Its path.

        Raises:
            OSError: If it cannot be written.
        """
        file = Path(folder) / RESULTS
        with whole_file(file) as part:
            part.write_text(self.to_json() + "\n", encoding="utf-8")
        return file

    def __str__(self) -> str:
        found = self.to_dict()
        return "\n".join([*map(to_text, render_sweep(found)), *summarize(found)])
