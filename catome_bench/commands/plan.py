"""`catome plan`: where merging pays off in a network, from its configuration alone; nothing is loaded or run."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from catome_adapters import RECIPES, MergeRecipe, MergeSite
from catome_adapters.prediction.seconds import TYPICAL_BATCH, Prediction, predict_site
from catome_bench.measure.forecast import Forecast, build_network, count_tokens, find_scale, forecast, input_size
from catome_bench.models.pipeline import SHIPPED_MODEL
from catome_core import TokenGrid

MIN_COLUMNS = 114
"""Width of the terminal that the table needs; in a narrower one it would lose its figures."""
COLUMNS = ("\nlevel", "\ntokens", "\nchannels", "share\nattn1", "share\nblock", "ceiling\nattention", "ceiling\nblock")
COLUMNS += ("saves\nms", "costs\nms", "\nauto")


def plan(
    model: Annotated[str, typer.Argument(help="Folder of a pipeline or a UNet in diffusers format, or 'shipped'.")],
    height: Annotated[int | None, typer.Option(min=1, help="Pixels; by default the model's own size.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Pixels; by default the model's own size.")] = None,
    recipe: Annotated[str, typer.Option(help=f"One of: {', '.join(RECIPES)}.")] = "default",
    scale: Annotated[
        int | None, typer.Option(min=1, help="Pixels to a pixel of the network's input; by default the VAE's, or 8.")
    ] = None,
    device: Annotated[str, typer.Option(help="Predict for it: cpu or cuda.")] = (
        "cuda" if torch.cuda.is_available() else "cpu"
    ),
) -> None:
    """Show where merging would pay in a network, and what it could reach; nothing is loaded or run."""
    if recipe not in RECIPES:
        raise typer.BadParameter(f"{recipe!r}; expected one of {sorted(RECIPES)}", param_hint="--recipe")
    try:
        folder = SHIPPED_MODEL if model == "shipped" else Path(model)
        network = build_network(folder, torch.float32 if device == "cpu" else torch.bfloat16)
        size = input_size(network, height, width, scale or find_scale(folder))
        result = forecast(network, size, RECIPES[recipe], device)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    console = Console(width=max(Console().width, MIN_COLUMNS))
    console.print(render_forecast(result, RECIPES[recipe], device), *closing_lines(result), sep="\n")


def render_forecast(result: Forecast, recipe: MergeRecipe, device: str) -> Table:
    """A table with one row for the blocks of each transformer, which share a grid."""
    note = "share: of the network's arithmetic. ceiling: of the network, by these blocks alone, at 50 %/75 % removed."
    note += f"\nms: predicted for a call of one block, scope {recipe.scope}, {device}, batch {TYPICAL_BATCH}."
    table = Table(box=SIMPLE_HEAD, caption=note, caption_justify="left", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("blocks", no_wrap=True, vertical="bottom")
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for host, group in groupby(result.sites, key=lambda site: site.name.rpartition(".transformer_blocks")[0]):
        table.add_row(*_host_cells(result, host, list(group), recipe, device))
    return table


def closing_lines(result: Forecast) -> list[str]:
    """The ceiling of the whole network, at the chosen levels and at all levels."""
    chosen = [site for site in result.sites if site.level in result.levels]
    levels = ", ".join(map(str, result.levels))
    return [
        f"the network's ceiling, level {levels} (auto): {_ceilings(result, chosen)}",
        f"the network's ceiling, all levels: {_ceilings(result, result.sites)}",
    ]


def _host_cells(result: Forecast, host: str, group: list[MergeSite], recipe: MergeRecipe, device: str) -> list[str]:
    site = group[0]
    prediction = predict_site(site, recipe, TokenGrid(site.shape or (), recipe.stride), device_type=device)
    shares = [result.share(f"{block.name}{part}" for block in group) for part in (".attn1", "")]
    return [
        f"{host} x {len(group)}" if len(group) > 1 else host,
        str(site.level),
        f"{count_tokens(site):,}",
        str(prediction.channels),
        *(f"{share:.1%}" for share in shares),
        *(_pair(result, group, scope) for scope in ("attention", "block")),
        f"{prediction.saved * 1e3:.2f}",
        f"{prediction.overhead * 1e3:.2f}",
        _verdict(site, prediction, result.levels),
    ]


def _verdict(site: MergeSite, prediction: Prediction, levels: list[int]) -> str:
    if site.level not in levels:
        return "no"
    return "yes" if prediction.gain > 0 else "too small"


def _ceilings(result: Forecast, sites: list[MergeSite]) -> str:
    pairs = [f"{scope} {_pair(result, sites, scope)}" for scope in ("attention", "block")]
    return ", ".join(pairs) + " at 50 %/75 % removed"


def _pair(result: Forecast, sites: list[MergeSite], scope: str) -> str:
    return "/".join(f"{result.ceiling(sites, removed, scope):.2f}" for removed in (0.5, 0.75))
