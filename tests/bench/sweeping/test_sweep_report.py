"""The page of a sweep: its sentence, tables and pictures, whether or not every picture is there."""

from html import escape
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from catome_bench.cli import app
from catome_bench.sweep import measure_sweep


def page_of(folder: Path) -> str:
    result = CliRunner().invoke(app, ["report", str(folder)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_of_a_sweep_has_its_sentence_its_tables_and_the_first_pictures(sweep: Any, tmp_path: Path):
    swept = sweep(tables=["comparison", "configurations"], prompts=["cat"], seeds=5)
    page = page_of(tmp_path / "sweep")
    sentence = str(swept).splitlines()[-1]
    assert sentence.startswith("balanced: ") and f'<p class="conclusion">{escape(sentence)}.</p>' in page
    assert "Table IV" in page and "Table II " in page and "0, 10, 11, 12, 15, 20, 25, 30, 35, 45" in page
    assert page.count('class="live before-after"') == 4
    assert 'alt="cat, seed 0, unmerged"' in page and 'alt="cat, seed 3, balanced"' in page


def test_while_others_draw_the_page_has_the_pictures_that_every_row_has(sweep: Any, tmp_path: Path):
    sweep()
    (tmp_path / "sweep" / "balanced" / "0-0.png").unlink()
    measure_sweep(tmp_path / "sweep", progress=False)
    page = page_of(tmp_path / "sweep")
    assert "1 pictures are still to be drawn" in page and page.count('class="live before-after"') == 1


def test_a_sweep_without_pictures_has_a_page(sweep: Any, tmp_path: Path):
    sweep(tables=["configurations"])
    assert "Table II " in page_of(tmp_path / "sweep")
