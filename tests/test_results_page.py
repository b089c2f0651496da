"""Tables on the pages of results are those of the files that they name."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = "\n".join((ROOT / "docs" / name).read_text() for name in ("results.md", "results-details.md"))
# Up to the first line of another kind.
TABLES = re.findall(r"<!-- python benchmarks/tables\.py (.*) -->\n\n((?:(?:=== |    |\|).*\n|\n)+)", PAGES)
SCRIPT = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))


def test_every_trained_model_has_a_table():
    assert len(TABLES) >= 3


@pytest.mark.parametrize(("files", "shown"), TABLES, ids=[files for files, _ in TABLES])
def test_table_is_that_of_its_files(files, shown):
    lines = SCRIPT["page_of"](ROOT / "benchmarks" / "results" / name for name in files.split())
    assert shown.strip() == "\n".join(lines).strip()
