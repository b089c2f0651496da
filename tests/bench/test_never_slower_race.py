"""The level of the benchmark that no recipe may lose: what it measures, not what comes out."""

import io
import json

import pytest
from rich.console import Console

from catome_adapters import RECIPES
from catome_bench.races import never_slower
from catome_bench.views.tables import render_never_slower
from zoo.class_pipelines import tiny_shipped

DISTINCT = set(RECIPES) - {"default"}
"""The default is "balanced"."""


@pytest.fixture(autouse=True)
def merging_is_free() -> None:
    """Overrides the fixture of conftest.py: here it costs what it costs."""


@pytest.fixture(scope="module")
def results():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(never_slower, "MIN_SECONDS", 0.0)
        patch.setattr(never_slower, "load_shipped", tiny_shipped)
        return never_slower.run_never_slower(arch="unet", size=16, steps=(2, 3), repeats=2)


@pytest.mark.thorough
def test_every_recipe_has_a_row_for_every_length_of_run(results):
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    rows = [(row["steps"], row["subject"]) for row in results["rows"]]
    subjects = DISTINCT | {never_slower.LEFT_ALONE}
    assert sorted(rows) == sorted((steps, name) for steps in (2, 3) for name in subjects)
    able = {row["subject"]: row for row in results["rows"] if "note" not in row}
    assert DISTINCT - set(able) == {"tome"}
    assert all(0 <= row["merged"] < 1 and 0 <= row["unmerged_steps"] <= 1 for row in able.values())
    speedup = able["balanced"]["speedup"]
    low, high = speedup["interval"]
    assert 0 < low <= speedup["median"] <= high


@pytest.mark.parametrize("arch", ["unet", "dit"])
@pytest.mark.thorough
def test_runs_that_are_left_alone_are_one_row_more(arch, monkeypatch):
    """At 16 pixels all are, those of a recipe that leaves the first steps alone, too."""
    monkeypatch.setattr(never_slower, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(never_slower, "load_shipped", tiny_shipped)
    *rows, left_alone = never_slower.run_never_slower(arch=arch, size=16, steps=[3], repeats=1)["rows"]
    assert left_alone["subject"] == never_slower.LEFT_ALONE and left_alone["merged"] == 0
    assert left_alone["rounds"] == sum(row["rounds"] for row in rows if row.get("merged") == 0) >= 7


def test_undisturbed_takes_every_step_from_its_fastest_round():
    rounds = [never_slower.Round([2.0, 8.0], [1.0, 9.0]), never_slower.Round([7.0, 3.0], [6.0, 1.5])]
    assert never_slower.time_of(rounds)["undisturbed"] == (2.0 + 3.0) / (1.0 + 1.5)


@pytest.mark.thorough
def test_its_table_has_a_line_for_each(results):
    console = Console(file=io.StringIO(), width=120)
    console.print(render_never_slower(results | {"case": "unet"}))
    text = console.file.getvalue()
    assert "unet, 16 x 16 pixels" in text
    assert sum(line.lstrip("│ ").startswith(("2 ", "3 ")) for line in text.splitlines()) == 2 * (len(DISTINCT) + 1)
