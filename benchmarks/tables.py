"""Tables of the results page, of what `catome bench --level pipeline` writes: `python benchmarks/tables.py FILE...`.

Runs of several lengths of one model become columns of one table, fastest first; fewer steps are rows by their share.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

Row = Mapping[str, Any]
Subjects = Mapping[str, Mapping[int, Row]]
"""The rows of every subject, by the length of the run."""

TABS = {
    "Speed-up and PSNR in dB (worst picture)": ("speed-up", "PSNR"),
    "Intervals": ("interval", "interval of PSNR"),
    "SSIM and Frechet distance": ("SSIM", "Frechet"),
}


def main() -> None:
    """Print the tables as tabs of a page."""
    sys.stdout.writelines(f"{one}\n" for one in tabs(read(map(Path, sys.argv[1:]))))


def read(files: Iterable[Path]) -> Subjects:
    """Every subject that was drawn, the fastest first."""
    subjects: dict[str, dict[int, Row]] = {}
    for table in (table for file in files for table in json.loads(file.read_text())["tables"]):
        for row in table["rows"]:
            if "note" not in row:
                subjects.setdefault(subject_of(row), {})[row["steps"]] = row
    return dict(sorted(subjects.items(), key=lambda one: -mean(row["speedup"]["median"] for row in one[1].values())))


def subject_of(row: Row) -> str:
    """Its name; fewer steps are one subject, whatever the length."""
    steps, _, rest = row["subject"].partition(" ")
    name = f"{100 * int(steps) / row['steps']:.0f} % of the steps" if rest == "steps" else row["subject"]
    return f"**{name}**" if row["family"] in ("ours", "on top") else name


def tabs(subjects: Subjects) -> Iterator[str]:
    """The lines of the page."""
    lengths = sorted({steps for rows in subjects.values() for steps in rows})
    for title, columns in TABS.items():
        heads = [f"{name}, {steps}" for steps in lengths for name in columns]
        yield from (f'=== "{title}"', "", "    " + line(["subject", *heads]), "    " + "|---" * (1 + len(heads)) + "|")
        for subject, rows in subjects.items():
            found = (cells(rows[steps], columns) if steps in rows else ["", ""] for steps in lengths)
            yield "    " + line([subject, *(cell for pair in found for cell in pair)])
        yield ""


def cells(row: Row, columns: Sequence[str]) -> list[str]:
    """What a row says in these columns."""
    psnr, (slow, fast) = row["psnr"], row["speedup"]["interval"]
    low, high = psnr["interval"]
    same = psnr["median"] is None
    texts = {
        "speed-up": f"{row['speedup']['median']:.2f}x",
        "PSNR": "same" if same else f"{psnr['median']:.1f} ({psnr['worst']:.1f})",
        "interval": f"{slow:.2f}-{fast:.2f}",
        "interval of PSNR": "same" if same else f"{low:.1f}-{high:.1f}",
        "SSIM": f"{row['ssim']['median']:.4f}",
        "Frechet": f"{row['frechet']:.3f}",
    }
    return [texts[column] for column in columns]


def line(cells: Iterable[str]) -> str:
    """A row in Markdown."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
