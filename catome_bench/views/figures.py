"""The figures of the demo."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from einops import rearrange
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from catome_bench.files import whole_file
from catome_bench.models.artist import Pair, Recording
from catome_bench.plots import jaccard_curves, plot_jaccard, plot_merge_map, plot_similarity, similarity_curves
from catome_bench.views.comparison import show_picture
from catome_core import MergePlan, TokenGrid, merge, unmerge

matplotlib.use("agg")

Curves = Mapping[str, Any]
"""Figures over the steps, by layer."""


def write_figures(folder: Path, pairs: Sequence[Pair], recording: Recording) -> None:
    """Write every figure of the demo into a folder."""
    figures = {
        "side-by-side": side_by_side(pairs),
        "merge-map": merge_map(pairs[0].baseline.picture, recording.history),
        "jaccard": curves_of(plot_jaccard, jaccard_curves(recording.history)),
        "similarity": curves_of(plot_similarity, similarity_curves(recording.summary)),
        "merged-fraction": merged_fractions(pairs[0]),
    }
    for name, figure in figures.items():
        with whole_file(folder / f"{name}.png") as part:
            figure.savefig(part, dpi=110)
    plt.close("all")


def side_by_side(pairs: Sequence[Pair]) -> Figure:
    """Baseline, merged, and their difference times four, in three rows with a column for each pair."""
    size = (1.7 * len(pairs) + 0.3, 5.4)
    figure, axes = plt.subplots(3, len(pairs), figsize=size, squeeze=False, layout="constrained")
    for column, pair in enumerate(pairs):
        difference = (pair.merged.picture - pair.baseline.picture).abs() * 4
        for row, picture in enumerate((pair.baseline.picture, pair.merged.picture, difference.clamp(0, 1))):
            show_picture(axes[row, column], picture)
        axes[0, column].set_title(pair.name)
    for row, label in enumerate(("baseline", "CA-ToMe", "difference x 4")):
        axes[row, 0].set_ylabel(label)
    return figure


def merge_map(picture: Tensor, history: Sequence[dict[str, MergePlan]]) -> Figure:
    """The pairs above the threshold at an early, a middle and a late step, drawn over the finished picture.

    First row: every token in the mean color of its slot. Second row: kept tokens bright, merged tokens dark.
    """
    site = next(iter(history[0]))
    steps = [int(len(history) * fraction) for fraction in (0.1, 0.5, 0.9)]
    figure, axes = plt.subplots(2, 4, figsize=(11, 5.7), layout="constrained")
    show_picture(axes[0, 0], picture)
    axes[0, 0].set_title("finished picture")
    axes[1, 0].set_axis_off()
    for column, step in enumerate(steps, start=1):
        plan = _last_sample(history[step][site])
        show_picture(axes[0, column], average_slots(picture, plan))
        plot_merge_map(plan, square_grid(plan), picture, axes[1, column])
        axes[0, column].set_title(f"step {step}")
    figure.suptitle(f"{site}, pairs above the threshold")
    return figure


def average_slots(picture: Tensor, plan: MergePlan) -> Tensor:
    """The picture (3, h, w) with each token in the mean color of its slot."""
    side, _ = square_grid(plan).shape
    patch = picture.shape[-1] // side
    tokens = rearrange(picture, "c (h i) (w j) -> 1 (h w) (c i j)", h=side, w=side)
    averaged = unmerge(merge(tokens, plan), plan)
    return rearrange(averaged, "1 (h w) (c i j) -> c (h i) (w j)", h=side, i=patch, j=patch)


def square_grid(plan: MergePlan) -> TokenGrid:
    """The grid of a plan of the shipped models, whose pictures are square."""
    side = round(plan.slot.shape[1] ** 0.5)
    return TokenGrid((side, side))


def curves_of(plot: Callable[[Curves, Axes], Axes], curves: Curves) -> Figure:
    """A wide figure of one plot of curves by layer."""
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    plot(curves, axes)
    return figure


def merged_fractions(pair: Pair) -> Figure:
    """Share of tokens above the threshold at each layer and checkpoint, and the share that was merged (dashed)."""
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    for site in dict.fromkeys(row.site for row in pair.summary.rows):
        rows = [row for row in pair.summary.rows if row.site == site]
        # Where tokens are left unmerged there is no checkpoint, and no dot.
        marked = [row for row in rows if row.checkpoint]
        steps, shares = [row.step for row in marked], [row.mergeable_fraction for row in marked]
        (line,) = axis.plot(steps, shares, marker="o", markersize=4, label=site)
        merged = [row.merged_fraction for row in rows]
        axis.step([row.step for row in rows], merged, "--", where="mid", color=line.get_color())
    axis.set(xlabel="step", ylabel="share of the tokens", ylim=(0, 1))
    what = "above the threshold at the checkpoints (dots), merged (dashed)"
    axis.set_title(f"{pair.name}: {what if pair.summary.merged_fraction else 'nothing merged'}")
    axis.legend(loc="best", fontsize="small")
    return figure


def _last_sample(plan: MergePlan) -> MergePlan:
    return MergePlan(plan.slot[-1:].cpu(), plan.size[-1:].cpu(), plan.anchor[-1:].cpu())
