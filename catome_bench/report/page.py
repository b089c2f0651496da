"""The whole page: the conclusions, then what led to them."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from catome_bench.report.bench import show_bench
from catome_bench.report.compare import show_comparison
from catome_bench.report.demo import show_demo
from catome_bench.report.html import element
from catome_bench.report.part import Part
from catome_bench.report.results import Results, ResultsError, find_results
from catome_bench.report.sweep import show_sweep

SHOW: dict[str, Callable[[Results], Part]] = {
    "demo": show_demo,
    "compare": show_comparison,
    "bench": show_bench,
    "sweep": show_sweep,
}


def make_page(folder: Path) -> str:
    """The results in a folder as one HTML page that needs no other file and no network.

    Raises:
        ResultsError: If there are none, or some cannot be shown.
    """
    folder = folder.resolve() if folder.is_dir() else folder
    results = find_results(folder)
    parts = [_show(one) for one in results]
    title = f"CA-ToMe: {folder.name}"
    body = [element("h1", title)]
    body += [element("p", part.conclusion, **{"class": "conclusion"}) for part in parts]
    for one, part in zip(results, parts, strict=True):
        body.append(f"<section>{element('h2', f'catome {one.command}: {one.file.name}')}{part.body}</section>")
    template = Template(files("catome_bench.report").joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), body="\n".join(body))


def _show(results: Results) -> Part:
    try:
        return SHOW[results.command](results)
    except ResultsError:
        raise
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ResultsError(
            f"{results.file} is not as this version of catome {results.command} writes it ({what}): run it again"
        ) from error
