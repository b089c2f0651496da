"""The level of the benchmark that no recipe may lose: what it measures, not what comes out."""

import io
import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from catome_adapters import RECIPES
from catome_bench.races import never_slower
from catome_bench.views.tables import render_never_slower

DISTINCT = set(RECIPES) - {"default"}
"""The default is "balanced"."""


@pytest.fixture
def results(monkeypatch):
    monkeypatch.setattr(never_slower, "STEPS_BY_SIZE", {16: (2, 3)})
    monkeypatch.setattr(never_slower, "MIN_SECONDS", 0.0)
    return never_slower.run_never_slower(arch="unet", size=16, repeats=2)


def test_every_recipe_has_a_row_for_every_length_of_run(results):
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    rows = [(row["steps"], row["subject"]) for row in results["rows"]]
    assert sorted(rows) == sorted((steps, name) for steps in (2, 3) for name in DISTINCT)
    able = {row["subject"]: row for row in results["rows"] if "note" not in row}
    assert DISTINCT - set(able) == {"tome"}
    assert all(0 <= row["merged"] < 1 and 0 <= row["unmerged_steps"] <= 1 for row in able.values())
    speedup = able["balanced"]["speedup"]
    low, high = speedup["interval"]
    assert 0 < low <= speedup["median"] <= high


def test_fastest_is_the_speedup_of_the_fastest_rounds():
    summary = SimpleNamespace(merged_fraction=0.5, rows=[SimpleNamespace(left_unmerged=False)])
    row = never_slower._figures([(2.0, 1.0), (9.0, 3.0), (8.0, 2.0)], summary)
    assert (row["rounds"], row["speedup"]["median"], row["fastest"]) == (3, 3.0, 2.0)


def test_its_table_has_a_line_for_each(results):
    console = Console(file=io.StringIO(), width=120)
    console.print(render_never_slower(results | {"case": "unet"}))
    text = console.file.getvalue()
    assert "unet, 16 x 16 pixels" in text
    assert sum(line.lstrip("│ ").startswith(("2 ", "3 ")) for line in text.splitlines()) == 2 * len(DISTINCT)
