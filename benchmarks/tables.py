"""Tables of the results page, of what `catome bench` writes: `python benchmarks/tables.py FILE...`.

Of the level "pipeline", lengths of the runs are columns, and subjects rows, fastest first; fewer steps are named by
their share. Of the level "never-slower", recipes are columns, and models, sizes and lengths rows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from catome_bench.races.never_slower import LEFT_ALONE

Row = Mapping[str, Any]
Subjects = Mapping[str, Mapping[int, Row]]
"""The rows of every subject, by the length of the run."""

MODELS = {"unet": "UNet", "dit": "DiT", "dit-patch1": "DiT, patch 1"}
TABS = {
    "Speed-up and PSNR in dB (worst picture)": ("speed-up", "PSNR"),
    "Intervals": ("interval", "interval of PSNR"),
    "SSIM and Frechet distance": ("SSIM", "Frechet"),
}


def main() -> None:
    """Print the lines of the page."""
    sys.stdout.writelines(f"{one}\n" for one in page_of(map(Path, sys.argv[1:])))


def page_of(files: Iterable[Path]) -> Iterator[str]:
    """The lines of the page, of files of one level, and of pictures by one model at one size."""
    tables = [table for file in files for table in json.loads(file.read_text())["tables"]]
    if tables[0]["level"] == "never-slower":
        return never_slower(tables)
    drawn = sorted({f"{table['case']} at {table['size']} pixels" for table in tables})
    if len(drawn) > 1:
        raise SystemExit(f"these are pictures of {' and '.join(drawn)}; expected one model and size")
    return tabs(by_subject(tables))


def by_subject(tables: Iterable[Mapping[str, Any]]) -> Subjects:
    """Every subject that was drawn, the fastest first."""
    subjects: dict[str, dict[int, Row]] = {}
    for row in (row for table in tables for row in table["rows"] if "note" not in row):
        subjects.setdefault(subject_of(row), {})[row["steps"]] = row
    return dict(sorted(subjects.items(), key=lambda one: -mean(row["speedup"]["median"] for row in one[1].values())))


def subject_of(row: Row) -> str:
    """Its name; fewer steps are one subject, whatever the length."""
    name = row["subject"]
    if row["family"] == "fewer steps":
        name = f"{100 * int(name.split()[0]) / row['steps']:.0f} % of the steps"
    return f"**{name}**" if row["family"] in ("ours", "on top") else name


def tabs(subjects: Subjects) -> Iterator[str]:
    """A tab for each pair of columns."""
    lengths = sorted({steps for rows in subjects.values() for steps in rows})
    for title, columns in TABS.items():
        heads = [f"{name}, {steps}" for steps in lengths for name in columns]
        yield from (f'=== "{title}"', "", "    " + line(["subject", *heads]), "    " + rule(1 + len(heads)))
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


def never_slower(tables: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Speed-ups as medians of the rounds and undisturbed, those where nothing merged with a star."""
    timed = (row["subject"] for table in tables for row in table["rows"] if "note" not in row)
    subjects = dict.fromkeys([LEFT_ALONE, *timed])
    yield line(["model", "pixels", "steps", "rounds", *subjects])
    yield rule(4 + len(subjects))
    for table in sorted(tables, key=lambda table: table["size"]):
        for steps in sorted({row["steps"] for row in table["rows"]}):
            rows = {row["subject"]: row for row in table["rows"] if row["steps"] == steps and "note" not in row}
            rounds = str(min(row["rounds"] for row in rows.values()))
            found = (speedups(rows.get(subject)) for subject in subjects)
            yield line([MODELS[table["case"]], str(table["size"]), str(steps), rounds, *found])


def speedups(row: Row | None) -> str:
    """Of one recipe, or of all that were left alone."""
    if row is None:
        return ""
    star = "" if row["merged"] or row["subject"] == LEFT_ALONE else "*"
    return f"{row['speedup']['median']:.2f} ({row['undisturbed']:.2f}){star}"


def line(cells: Iterable[str]) -> str:
    """A row in Markdown."""
    return f"| {' | '.join(cells)} |"


def rule(columns: int) -> str:
    """What is below the first row of a table."""
    return "|---" * columns + "|"


if __name__ == "__main__":
    main()
