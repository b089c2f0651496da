"""Speed-up against fidelity, one point a subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

matplotlib.use("agg")

STYLES = {"ours": ("o", "tab:blue"), "peer": ("s", "tab:red"), "fewer steps": ("^", "tab:gray")}
# Where a label may stand around its point, in points, best first: (x, y, horizontal alignment).
PLACES = [(side * 6, y, align) for y in (0, 8, -8, 16, -16, 24, -24) for side, align in ((1, "left"), (-1, "right"))]


def scatter(results: Mapping[str, Any]) -> plt.Figure:
    """Draw the rows of `run_pictures`, a panel for each number of steps; up and to the right is better.

    A subject that drew the same picture as the unmerged run has no finite PSNR and is left out.
    """
    totals = list(dict.fromkeys(row["steps"] for row in results["rows"]))
    size = (7.5 * len(totals), 6)
    figure, axes = plt.subplots(1, len(totals), figsize=size, squeeze=False, layout="constrained")
    for axis, total in zip(axes[0], totals, strict=True):
        _panel(axis, [row for row in results["rows"] if row["steps"] == total and row.get("psnr") is not None])
        axis.set_title(f"{total} steps, {results['size']} x {results['size']} pixels, pictures: {results['images']}")
    figure.draw_without_rendering()
    for axis in axes[0]:
        _spread_labels(axis)
    return figure


def _panel(axis: plt.Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for family, (marker, color) in STYLES.items():
        points = [(row["speedup"], row["psnr"]) for row in rows if row["family"] == family]
        if points:
            axis.scatter(*zip(*points, strict=True), marker=marker, color=color, label=family)
    for row in rows:
        at, style = (row["speedup"], row["psnr"]), {"color": STYLES[row["family"]][1], "fontsize": "small"}
        axis.annotate(row["subject"], at, (0, 0), textcoords="offset points", va="center", **style)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.margins(x=0.15)
    axis.set(xlabel="speed-up over the unmerged run", ylabel="PSNR against the unmerged picture, dB")
    axis.grid(alpha=0.3)
    axis.legend()


def _spread_labels(axis: plt.Axes) -> None:
    """Put every label where it covers least of the points and of the labels before it."""
    taken = [_around(axis.transData.transform(label.xy)) for label in _labels(axis)]
    for label in _labels(axis):
        best = min(PLACES, key=lambda place: (_covered(label, place, taken), PLACES.index(place)))
        _move(label, best)
        taken.append(label.get_window_extent())


def _labels(axis: plt.Axes) -> list[Annotation]:
    return [text for text in axis.texts if isinstance(text, Annotation)]


def _around(point: Sequence[float]) -> Bbox:
    return Bbox.from_bounds(point[0] - 4, point[1] - 4, 8, 8)


def _covered(label: Annotation, place: tuple[int, int, str], taken: Sequence[Bbox]) -> float:
    _move(label, place)
    own = label.get_window_extent()
    return sum(cut.width * cut.height for box in taken if (cut := Bbox.intersection(own, box)) is not None)


def _move(label: Annotation, place: tuple[int, int, str]) -> None:
    x, y, align = place
    label.set(position=(x, y), horizontalalignment=align)
