"""Speed-up against fidelity, one point per variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

matplotlib.use("agg")

STYLES = {
    "ours": ("o", "tab:blue"),
    "peer": ("s", "tab:red"),
    "fewer steps": ("^", "tab:gray"),
    "step cache": ("D", "tab:orange"),
    "on top": ("*", "tab:green"),
}
LONGEST_NAME = 30
# Offsets of a label from its point, in points, best first: (x, y, horizontal alignment).
OFFSETS = [(side * 6, y, align) for y in (0, 8, -8, 16, -16, 24, -24) for side, align in ((1, "left"), (-1, "right"))]


def scatter(results: Mapping[str, Any]) -> Figure:
    """Draw the rows of `run_pictures`, with a panel for each number of steps; up and to the right is better.

    A variant that drew the same picture as the unmerged run has no finite PSNR and is left out.
    """
    totals = list(dict.fromkeys(row["steps"] for row in results["rows"]))
    size = (7.5 * len(totals), 6)
    figure, axes = plt.subplots(1, len(totals), figsize=size, squeeze=False, layout="constrained")
    for axis, total in zip(axes[0], totals, strict=True):
        _panel(axis, [row for row in results["rows"] if row["steps"] == total and is_finite(row)])
        axis.set_title(f"{total} steps, {results['size']} x {results['size']} pixels, pictures: {results['images']}")
    figure.draw_without_rendering()
    for axis in axes[0]:
        _spread_labels(axis)
    return figure


def draw_front(rows: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Draw rows with a finite PSNR in one panel."""
    figure, axis = plt.subplots(layout="constrained")
    _panel(axis, rows)
    axis.set_title(title)
    figure.draw_without_rendering()
    _spread_labels(axis)
    return figure


def _panel(axis: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for family, (marker, color) in STYLES.items():
        points = [_point(row) for row in rows if row["family"] == family]
        if points:
            axis.scatter(*zip(*points, strict=True), marker=marker, color=color, label=family)
            axis.plot(*zip(*front(points), strict=True), color=color, linewidth=0.8, alpha=0.6)
    for row in rows:
        at, color = _point(row), STYLES[row["family"]][1]
        axis.annotate(
            _short(row["subject"]), at, (0, 0), textcoords="offset points", va="center", color=color, fontsize="small"
        )
    axis.axvline(1, color="black", linewidth=0.8)
    axis.margins(x=0.15)
    axis.set(xlabel="speed-up over the unmerged run", ylabel="PSNR against the unmerged picture, dB")
    axis.grid(alpha=0.3)
    if rows:
        axis.legend(loc="best")


def _short(name: str) -> str:
    """A name may be the path of a file, longer than the plot is wide."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (speed-up, PSNR) to which no other is preferable, slowest first.

    Examples:
        >>> front([(1.5, 40.0), (1.2, 50.0), (1.4, 39.0)])
        [(1.2, 50.0), (1.5, 40.0)]
    """
    best: list[tuple[float, float]] = []
    for point in sorted(points, reverse=True):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best[::-1]


def is_finite(row: Mapping[str, Any]) -> bool:
    """Whether a row has a PSNR that can be drawn."""
    return row.get("psnr") is not None and row["psnr"]["median"] is not None


def _point(row: Mapping[str, Any]) -> tuple[float, float]:
    return row["speedup"]["median"], row["psnr"]["median"]


def _spread_labels(axis: Axes) -> None:
    """Move each label to where it covers the least of the points and of the labels placed before it."""
    taken = [_around(*axis.transData.transform(label.xy)) for label in _labels(axis)]
    for label in _labels(axis):
        best = min(OFFSETS, key=lambda offset: (_covered(label, offset, taken), OFFSETS.index(offset)))
        _move(label, best)
        taken.append(label.get_window_extent())


def _labels(axis: Axes) -> list[Annotation]:
    return [text for text in axis.texts if isinstance(text, Annotation)]


def _around(x: float, y: float) -> Bbox:
    return Bbox.from_bounds(x - 4, y - 4, 8, 8)


def _covered(label: Annotation, offset: tuple[int, int, str], taken: Sequence[Bbox]) -> float:
    """The area that the label shares with others, and what of it is outside of the axes."""
    _move(label, offset)
    own = label.get_window_extent()
    inside = _shared(own, label.axes.get_window_extent()) if label.axes else 0.0
    return sum(_shared(own, box) for box in taken) + own.width * own.height - inside


def _shared(one: Bbox, other: Bbox) -> float:
    cut = Bbox.intersection(one, other)
    return 0.0 if cut is None else cut.width * cut.height


def _move(label: Annotation, offset: tuple[int, int, str]) -> None:
    x, y, align = offset
    label.set(position=(x, y), horizontalalignment=align)
