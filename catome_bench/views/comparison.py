"""A comparison as a table and as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from catome_bench.files import whole_file
from catome_bench.views.speed import with_interval

COLUMNS = ("s/picture", "speed-up", "denoiser", "speed-up", "PSNR", "SSIM", "merged", "memory", "warm-up")
MOST_COLUMNS = 8
"""Calls in the figure; every one has files of its own."""
AMPLIFIED = 10
WIDTH = 160


def render_comparison(results: Mapping[str, Any]) -> Table:
    """The rows of `Compared.to_dict`."""
    caption = "medians over the calls; in parentheses, the interval of the median, or the 5th percentile"
    table = Table("", caption=caption, caption_justify="left")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for row in results["rows"]:
        table.add_row(row["name"], *_cells(row))
    return table


def to_text(table: Table) -> str:
    """A table without colors."""
    text = StringIO()
    Console(file=text, width=WIDTH, color_system=None).print(table)
    return text.getvalue().rstrip()


def side_by_side(pictures: Mapping[str, Sequence[Tensor]]) -> Figure:
    """The unmerged pictures (3, height, width), uint8, and below them those of every recipe, with their difference."""
    shown = {name: list(some[:MOST_COLUMNS]) for name, some in pictures.items()}
    (first, unmerged), *recipes = shown.items()
    rows = [(first, unmerged)]
    for name, merged in recipes:
        apart = [difference(*pair) for pair in zip(merged, unmerged, strict=True)]
        rows += [(name, merged), (f"difference x {AMPLIFIED}", apart)]
    figure = Figure(figsize=(2.2 * len(unmerged) + 0.4, 2.2 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(unmerged), squeeze=False)
    for line, (label, some) in zip(axes, rows, strict=True):
        line[0].set_ylabel(label, parse_math=False)
        for axis, picture in zip(line, some, strict=True):
            show_picture(axis, picture)
    return figure


def difference(picture: Tensor, unmerged: Tensor) -> Tensor:
    """Ten times how far two pictures are apart, uint8.

    Examples:
        >>> difference(torch.tensor([10, 200]), torch.tensor([13, 0]))
        tensor([ 30, 255], dtype=torch.uint8)
    """
    apart = (picture.int() - unmerged.int()).abs()
    return (apart * AMPLIFIED).clamp(max=255).byte()


def to_bytes(picture: Tensor) -> Tensor:
    """A picture in [0, 1] as it is saved: uint8."""
    return (picture * 255).round().to(torch.uint8)


def save_picture(picture: Tensor, file: Path) -> None:
    """Write a picture (3, height, width), uint8, as a PNG."""
    with whole_file(file) as part:
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(part)


def show_picture(axis: Axes, picture: Tensor) -> None:
    """Draw a picture (3, height, width), without ticks."""
    axis.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
    axis.set(xticks=[], yticks=[])


def _cells(row: Mapping[str, Any]) -> list[str]:
    memory, is_recipe = row["memory"], row["recipe"] is not None
    return [
        f"{row['seconds']['median']:.3g}",
        with_interval(row["speedup"]) if is_recipe else "",
        f"{row['denoiser']['median']:.3g}",
        with_interval(row["denoiser_speedup"]) if is_recipe and row["denoiser_speedup"] else "",
        _fidelity(row["psnr"], "{:.1f} dB"),
        _fidelity(row["ssim"], "{:.4f}"),
        f"{row['merged']:.0%}" if is_recipe else "",
        "" if memory is None else f"{memory / 2**30:.2f} GiB",
        f"{row['warm_up']:.3g} s",
    ]


def _fidelity(spread: Mapping[str, Any] | None, form: str) -> str:
    if spread is None:
        return ""
    typical, worst = ("same" if value is None else form.format(value) for value in (spread["median"], spread["worst"]))
    return f"{typical} ({worst})"
