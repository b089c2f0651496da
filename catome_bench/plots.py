"""What a session has merged, on axes of matplotlib: which tokens, how its pairs change, how similar they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor

from catome_adapters import SessionSummary
from catome_core import MergePlan, TokenGrid, jaccard_distance

__all__ = ["jaccard_curves", "merged_tokens", "plot_jaccard", "plot_merge_map", "plot_similarity", "similarity_curves"]

SHADE = 0.75
"""How dark merged tokens are drawn, from 0 to 1."""
MOST_NAMES = 12
"""A legend of more layers would hide the plot."""


def plot_merge_map(plan: MergePlan, grid: TokenGrid, picture: Tensor | None = None, ax: Axes | None = None) -> Axes:
    """Draw which tokens merge: those that share their slot are dark, those that stay alone are bright.

    Args:
        plan: From `session.plans()`, say. Of a batch, the last sample is drawn: with guidance, the conditional one.
        grid: Of the plan's tokens. The frames of a video are drawn from left to right.
        picture: Drawn below the map: (3, height, width) in [0, 1], of any size. None: white.
        ax: Where to draw; None: a new figure.

    Returns:
        The axes, in units of tokens.

    Raises:
        ValueError: If the plan is not one of this grid.

    Examples:
        >>> import torch
        >>> plan = MergePlan(torch.tensor([[0, 0, 1, 2]]), torch.tensor([[2, 1, 1]]), torch.tensor([[0, 2, 3]]))
        >>> axes = plot_merge_map(plan, TokenGrid((2, 2)))
        >>> axes.get_title()
        '3 of 4 tokens'
        >>> plt.close(axes.figure)
    """
    merged = merged_tokens(plan, grid)
    height, width = merged.shape
    axes, extent = _axes(ax), (0.0, float(width), float(height), 0.0)
    if picture is not None:
        axes.imshow(picture.permute(1, 2, 0).cpu().numpy(), extent=extent, interpolation="nearest")
    shade = np.zeros((height, width, 4))
    shade[..., 3] = merged.cpu().numpy() * SHADE
    axes.imshow(shade, extent=extent, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_title(f"{int((plan.size[-1] > 0).sum()):,} of {grid.tokens:,} tokens")
    return axes


def merged_tokens(plan: MergePlan, grid: TokenGrid) -> Tensor:
    """Which tokens of the grid share their slot, in the last sample.

    Returns:
        bool (height, width); frames are side by side.

    Raises:
        ValueError: If the plan is not one of this grid.

    Examples:
        >>> import torch
        >>> plan = MergePlan(torch.tensor([[0, 0, 1, 2]]), torch.tensor([[2, 1, 1]]), torch.tensor([[0, 2, 3]]))
        >>> merged_tokens(plan, TokenGrid((2, 2))).tolist()
        [[True, True], [False, False]]
    """
    slot = plan.slot[-1]
    if len(slot) != grid.tokens:
        raise ValueError(f"the plan is for {len(slot)} tokens; {grid} has {grid.tokens}: give the grid of its layer")
    shares = plan.size[-1][slot] > 1
    *frames, height, width = grid.shape
    return shares[grid.prefix :].reshape(*(frames or [1]), height, width).movedim(0, 1).flatten(1)


def plot_jaccard(
    history: Sequence[Mapping[str, MergePlan]] | Mapping[str, Sequence[float]], ax: Axes | None = None
) -> Axes:
    """Draw how far the pairs of every step are from those of the step before, one curve per layer (paper, Fig. 4).

    Args:
        history: `session.plans()` after every step, or what `jaccard_curves` makes of it.
        ax: Where to draw; None: a new figure.

    Returns:
        The axes: step, and distance from 0, the same pairs, to 1, none in common.

    Examples:
        >>> axes = plot_jaccard({"a layer": [0.5, 0.25]})
        >>> axes.lines[0].get_xydata().tolist()
        [[1.0, 0.5], [2.0, 0.25]]
        >>> plt.close(axes.figure)
    """
    curves = history if isinstance(history, Mapping) else jaccard_curves(history)
    axes = _axes(ax)
    for site, distances in curves.items():
        axes.plot(range(1, len(distances) + 1), distances, label=site)
    axes.set(xlabel="step", ylabel="Jaccard distance to the step before", ylim=(0, 1))
    _name_layers(axes, len(curves))
    return axes


def jaccard_curves(history: Sequence[Mapping[str, MergePlan]]) -> dict[str, list[float]]:
    """Distance between the pairs of consecutive steps, by layer, averaged over the batch.

    Examples:
        >>> import torch
        >>> plan = MergePlan(torch.tensor([[0, 0, 1]]), torch.tensor([[2, 1]]), torch.tensor([[0, 2]]))
        >>> jaccard_curves([{"a layer": plan}, {"a layer": plan}])
        {'a layer': [0.0]}
    """
    curves: dict[str, list[float]] = defaultdict(list)
    for before, after in pairwise(history):
        for site in (name for name in before if name in after):
            curves[site].append(jaccard_distance(before[site], after[site]).mean().item())
    return dict(curves)


def plot_similarity(summary: SessionSummary | Mapping[str, Sequence[Sequence[float]]], ax: Axes | None = None) -> Axes:
    """Draw how similar sources are to their destinations, over the checkpoints of a run (paper, Fig. 2).

    A line is the median of a layer, a band its middle half. What is above a recipe's threshold merges.

    Args:
        summary: `session.summary()`, or what `similarity_curves` makes of it.
        ax: Where to draw; None: a new figure.

    Returns:
        The axes: step, and cosine similarity.

    Examples:
        >>> axes = plot_similarity({"a layer": [(0, 0.1, 0.3, 0.5, 0.7, 0.9), (8, 0.2, 0.4, 0.6, 0.8, 1.0)]})
        >>> axes.lines[0].get_xydata().tolist()
        [[0.0, 0.5], [8.0, 0.6]]
        >>> plt.close(axes.figure)
    """
    curves = similarity_curves(summary) if isinstance(summary, SessionSummary) else summary
    axes = _axes(ax)
    for site, points in curves.items():
        steps, _, low, middle, high, _ = zip(*points, strict=True)
        (line,) = axes.plot(steps, middle, label=site, marker="o", markersize=3)
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel="step", ylabel="similarity to the destination", ylim=(None, 1))
    _name_layers(axes, len(curves))
    return axes


def similarity_curves(summary: SessionSummary) -> dict[str, list[tuple[float, ...]]]:
    """For each layer and checkpoint: the step, then minimum, quartiles and maximum of the sources' similarity."""
    curves: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    for row in summary.rows:
        if row.checkpoint and row.similarity:
            curves[row.site].append((row.step, *row.similarity))
    return dict(curves)


def _axes(ax: Axes | None) -> Axes:
    return plt.subplots(layout="constrained")[1] if ax is None else ax


def _name_layers(axes: Axes, layers: int) -> None:
    if 0 < layers <= MOST_NAMES:
        axes.legend(loc="best", fontsize="small")
