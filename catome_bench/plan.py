"""`catome plan`: where merging pays in a network, from its configuration alone. No weights, no run."""

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
from catome_adapters.prediction import USUAL_BATCH, Prediction, predict_site
from catome_adapters.recipe import Scope
from catome_bench.forecast import Forecast, build_network, count_tokens, find_scale, foresee, input_size
from catome_bench.pipeline import SHIPPED_MODEL
from catome_core import TokenGrid

NARROWEST = 114
"""Columns of the terminal that the table needs: narrower, it would lose its figures."""
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
        forecast = foresee(network, size, RECIPES[recipe], device)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    console = Console(width=max(Console().width, NARROWEST))
    console.print(render(forecast, RECIPES[recipe], device), *closing_lines(forecast), sep="\n")


def render(forecast: Forecast, recipe: MergeRecipe, device: str) -> Table:
    """One row for the blocks of each transformer, which have a grid in common."""
    note = "share: of the network's arithmetic. ceiling: of the network, by these blocks alone, at 50 %/75 % removed."
    note += f"\nms: predicted for a call of one block, scope {recipe.scope}, {device}, batch {USUAL_BATCH}."
    table = Table(box=SIMPLE_HEAD, caption=note, caption_justify="left", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("blocks", no_wrap=True, vertical="bottom")
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for host, group in groupby(forecast.sites, key=lambda site: site.name.rpartition(".transformer_blocks")[0]):
        table.add_row(*_cells(forecast, host, list(group), recipe, device))
    return table


def closing_lines(forecast: Forecast) -> list[str]:
    """What the whole network could reach, at the chosen levels and at all."""
    chosen = [site for site in forecast.sites if site.level in forecast.levels]
    levels = ", ".join(map(str, forecast.levels))
    return [
        f"the network's ceiling, level {levels} (auto): {_ceilings(forecast, chosen)}",
        f"the network's ceiling, all levels: {_ceilings(forecast, forecast.sites)}",
    ]


def _cells(forecast: Forecast, host: str, group: list[MergeSite], recipe: MergeRecipe, device: str) -> list[str]:
    site = group[0]
    prediction = predict_site(site, recipe, TokenGrid(site.shape or (), recipe.stride), kind=device)
    shares = [forecast.share(f"{block.name}{part}" for block in group) for part in (".attn1", "")]
    return [
        host + f" x {len(group)}" * (len(group) > 1),
        str(site.level),
        f"{count_tokens(site):,}",
        str(prediction.channels),
        *(f"{share:.1%}" for share in shares),
        *(_pair(forecast, group, scope) for scope in ("attention", "block")),
        f"{prediction.saved * 1e3:.2f}",
        f"{prediction.overhead * 1e3:.2f}",
        _verdict(site, prediction, forecast.levels),
    ]


def _verdict(site: MergeSite, prediction: Prediction, levels: list[int]) -> str:
    if site.level not in levels:
        return "no"
    return "yes" if prediction.gain > 0 else "too small"


def _ceilings(forecast: Forecast, sites: list[MergeSite]) -> str:
    pairs = [f"{scope} {_pair(forecast, sites, scope)}" for scope in ("attention", "block")]
    return ", ".join(pairs) + " at 50 %/75 % removed"


def _pair(forecast: Forecast, sites: list[MergeSite], scope: Scope) -> str:
    return "/".join(f"{forecast.ceiling(sites, removed, scope):.2f}" for removed in (0.5, 0.75))
