"""Runs every Python example of the README and the documentation; one namespace a page.

Those pages whose examples draw many pictures with trained networks, or compile, take minutes: `make thorough` runs
them, and `make check` before an upload.
"""

from doctest import ELLIPSIS
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

DOCS = Path(__file__).parent / "docs"
TAKE_MINUTES = {
    DOCS / name for name in ("compile.md", "paper.md", "quickstart.md", "serving.md", "sweep.md", "vits.md")
}

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(doctest_optionflags=ELLIPSIS)],
    patterns=["README.md", "docs/*.md", "docs/**/*.md"],
).pytest()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what a page that takes minutes has."""
    for item in items:
        if item.path in TAKE_MINUTES:
            item.add_marker(pytest.mark.thorough)
