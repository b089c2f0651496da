"""`catome report`: what a folder of results shows, as one page."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console

from catome_bench.files import check_file, whole_file
from catome_bench.report.page import make_page
from catome_bench.report.results import ResultsError


def write_page(folder: Path, output: Path | None) -> None:
    """Write the page of a folder; by default into it, as report.html.

    Raises:
        typer.BadParameter: If the folder has nothing to show, or the page could not be written.
    """
    output = output or folder / "report.html"
    try:
        page = make_page(folder)
    except ResultsError as error:
        raise typer.BadParameter(str(error), param_hint="DIR") from error
    check_file(output, "--output")
    with whole_file(output) as part:
        # JSON may hold halves of characters, which UTF-8 cannot.
        part.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")
    Console().print(f"written to {output}")
