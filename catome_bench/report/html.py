"""Pieces of a page; every text that is given is escaped."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib import rc_context
from matplotlib.figure import Figure
from rich.table import Column, Table

STYLE: dict[Any, Any] = {
    # A user's names are no formulas.
    "text.parse_math": False,
    "legend.framealpha": 0,
    "font.size": 13,
    "figure.figsize": (8, 5),
    "svg.fonttype": "path",
}
# Comments repeat the texts, names of groups occur in every figure, and black would be invisible in the dark.
NOT_SHOWN = re.compile(r'<!--.*?-->|<metadata>.*?</metadata>|(?<=<g) id="[^"]*"', re.DOTALL)


def element(tag: str, text: object, **attributes: object) -> str:
    """An element with this text.

    Examples:
        >>> element("p", "1 < 2", title="a sum")
        '<p title="a sum">1 &lt; 2</p>'
    """
    given = "".join(f' {name}="{escape(str(value))}"' for name, value in attributes.items())
    return f"<{tag}{given}>{escape(str(text))}</{tag}>"


def image(file: Path, alt: str, kind: str = "", attributes: str = "") -> str:
    """A PNG inside the page."""
    source = f"data:image/png;base64,{b64encode(file.read_bytes()).decode()}"
    return f'<img class="{kind}" alt="{escape(alt)}" src="{source}"{attributes}>'


def plot(label: str, draw: Callable[[], Figure]) -> str:
    """A figure of matplotlib inside the page, in the page's colors."""
    with rc_context(STYLE):
        figure, text = draw(), StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    svg = NOT_SHOWN.sub("", text.getvalue()).replace("#000000", "currentColor")
    return f'<div class="scroll plot" role="img" aria-label="{escape(label)}">{svg[svg.index("<svg") :]}</div>'


def table(rows: Table) -> str:
    """A table of the terminal as one of the page."""
    heads = [element("th", column.header, **_aligned(column)) for column in rows.columns]
    cells = zip(*(column.cells for column in rows.columns), strict=True)
    lines = [
        f'<tr class="{"strong" if row.style == "bold" else ""}">'
        + "".join(element("td", cell, **_aligned(column)) for cell, column in zip(line, rows.columns, strict=True))
        + "</tr>"
        for line, row in zip(cells, rows.rows, strict=True)
    ]
    title = element("caption", rows.title) if rows.title else ""
    note = element("p", rows.caption, **{"class": "note"}) if rows.caption else ""
    head = f"<thead><tr>{''.join(heads)}</tr></thead>"
    return scroll(f"<table>{title}{head}<tbody>{''.join(lines)}</tbody></table>") + note


def facts(title: str, known: Mapping[str, Any]) -> str:
    """Settings, or what is known of a machine, as a table; values within values as JSON."""
    lines = [
        f"<tr>{element('th', name, scope='row')}{element('td', _plain(value))}</tr>" for name, value in known.items()
    ]
    return element("h3", title) + scroll(f'<table class="facts"><tbody>{"".join(lines)}</tbody></table>')


def scroll(wide: str) -> str:
    """What may be wider than a phone; the keyboard reaches it."""
    return f'<div class="scroll" tabindex="0">{wide}</div>'


def grid(figures: Iterable[str]) -> str:
    """Figures side by side, as many as there is room for."""
    return f'<div class="grid">{"".join(figures)}</div>'


def _aligned(column: Column) -> dict[str, str]:
    return {"class": "number"} if column.justify == "right" else {}


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
