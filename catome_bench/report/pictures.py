"""Pictures that the reader moves through: before and after, and the merge maps of every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from catome_bench.report.html import element, grid, image


def before_after(name: str, unmerged: Path, merged: Mapping[str, Path]) -> str:
    """A picture without merging, on the left of a line that can be moved, and with a recipe on the right of it.

    Args:
        name: Of the picture.
        unmerged: File.
        merged: Files, by the names of recipes; the reader chooses one.
    """
    above = [
        image(file, f"{name}, {recipe}", "above", " hidden" if number else "")
        for number, (recipe, file) in enumerate(merged.items())
    ]
    return (
        f'<figure class="live before-after" style="--at: 50"><div class="stack">'
        f"{image(unmerged, f'{name}, unmerged')}{''.join(above)}</div>"
        f'<input type="range" min="0" max="100" value="50" aria-label="{escape(name)}: percent that are unmerged">'
        f"<figcaption>{escape(name)}: left unmerged, right {_choice(name, list(merged))}<br>"
        '<label><input type="checkbox"> difference x 4</label></figcaption></figure>'
    )


def _choice(name: str, recipes: Sequence[str]) -> str:
    if len(recipes) == 1:
        return escape(recipes[0])
    options = "".join(element("option", recipe) for recipe in recipes)
    return f'<select aria-label="{escape(name)}: recipe on the right">{options}</select>'


def merge_maps(picture: Path, strips: Mapping[str, Path]) -> str:
    """The merge map of every layer over a picture, at the step that the reader chooses.

    Args:
        picture: File of the square picture.
        strips: By layer, files with the square maps of all steps below one another.
    """
    last = min(_count_steps(strip) for strip in strips.values()) - 1
    figures = (
        f'<figure><div class="stack">{image(picture, "the picture")}'
        f"{image(strip, f'merge map of {site}: merged tokens are dark', 'strip')}</div>"
        f"{element('figcaption', site)}</figure>"
        for site, strip in strips.items()
    )
    return (
        f'<div class="live" style="--at: 0; --last: {max(1, last)}"><label>step <output>0</output> of {last + 1}'
        f'<input type="range" min="0" max="{last}" value="0"></label>{grid(figures)}</div>'
    )


def _count_steps(strip: Path) -> int:
    with Image.open(strip) as maps:
        return maps.height // maps.width
