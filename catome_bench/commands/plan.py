"""`catome plan`: where merging pays off in a model, from its configuration alone; nothing is loaded or run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from catome_adapters import SCOPES, MergeRecipe, MergeSite
from catome_adapters.prediction.seconds import TYPICAL_BATCH
from catome_adapters.prediction.worth import MIN_GAIN
from catome_adapters.reports.names import group_name
from catome_bench.commands.options import default_device, find_recipe
from catome_bench.planning.blueprint import read_blueprint
from catome_bench.planning.forecast import Forecast, SiteForecast, forecast
from catome_core import AdaptiveMerge

MIN_COLUMNS = 160
"""Width of the terminal that the table needs; in a narrower one it would lose its figures."""
COLUMNS = ("\nlevel", "\ntokens", "\nchannels", "share\nattention", "share\nblock")
COLUMNS += ("ceiling\nattention", "ceiling\nblock", "saves\nms", "costs\nms", "\nmerges")


def print_plan(
    model: str,
    *,
    height: int | None,
    width: int | None,
    frames: int | None,
    recipe: str | None,
    scale: int | None,
    device: str | None,
) -> None:
    """Print the forecast for a model at a size in pixels.

    Raises:
        typer.BadParameter: If the model cannot be built, its size is unknown or does not fit, or the recipe does not.
    """
    device = device or default_device()
    try:
        built = read_blueprint(model, (height, width), torch.float32 if device == "cpu" else torch.bfloat16)
        if scale:
            built = built._replace(scale=(scale, built.scale[1]))
        chosen = find_recipe(recipe or ("default" if built.denoises else "vit"))
        result = forecast(built, (frames, height, width), chosen, device)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    console = Console(width=max(Console().width, MIN_COLUMNS))
    console.print(verdict(result, chosen, device), highlight=False)
    console.print(render_forecast(result, chosen, device), *closing_lines(result), sep="\n")


def verdict(result: Forecast, recipe: MergeRecipe, device: str) -> str:
    """What to expect, and where to attach."""
    attach = f"attach at level{'s' if len(result.levels) > 1 else ''} {', '.join(map(str, result.levels))}"
    if not SCOPES[recipe.scope].predictable:
        return f"scope {recipe.scope} merges on from block to block, which figures of one block do not show; {attach}"
    policy, adapts = recipe.policy, recipe.policy.adapts
    fixed = f"capacity {policy.capacity}" if isinstance(policy, AdaptiveMerge) else f"a lattice of {recipe.stride}"
    setting = f"with scope {recipe.scope}{'' if adapts else f' and {fixed}'} on {device}"
    if not any(one.merges for one in result.sites):
        enough = f"{MIN_GAIN:.0%} of the network's time"
        return f"no gain expected {setting}: at this size no block saves {enough}, and larger sizes gain more"
    return f"expected {result.speedup:.2f}x {setting}{', if half of the tokens merge' if adapts else ''}; {attach}"


def render_forecast(result: Forecast, recipe: MergeRecipe, device: str) -> Table:
    """A table with one row for the blocks of each transformer, which share a grid."""
    note = (
        f"share: of the model's arithmetic{'' if result.counted else ' on tokens of the grid (not of text) in blocks'}."
    )
    note += "\nceiling: of the model, by these blocks alone, at 50 %/75 % removed."
    note += f"\nms: predicted for a call of one block, scope {recipe.scope}, {device}, batch {TYPICAL_BATCH}."
    table = Table(box=SIMPLE_HEAD, caption=note, caption_justify="left", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("blocks", no_wrap=True, vertical="bottom")
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for name, group in groupby(result.sites, key=lambda one: group_name(one.site.name)):
        table.add_row(*_cells(result, name, list(group)))
    return table


def closing_lines(result: Forecast) -> list[str]:
    """The ceiling of the whole model, at the chosen levels and at all levels."""
    sites = [one.site for one in result.sites]
    chosen = [site for site in sites if site.level in result.levels]
    levels = ", ".join(map(str, result.levels))
    return [
        f"the model's ceiling, level {levels}: {_ceilings(result, chosen)}",
        f"the model's ceiling, all levels: {_ceilings(result, sites)}",
    ]


def _cells(result: Forecast, name: str, group: Sequence[SiteForecast]) -> list[str]:
    (site, prediction, _), sites = group[0], [one.site for one in group]
    return [
        f"{name} x {len(group)}" if len(group) > 1 else name,
        str(site.level),
        f"{prediction.tokens:,}",
        str(prediction.channels),
        *(f"{result.share(sites, scope):.1%}" for scope in ("attention", "block")),
        *(_pair(result, sites, scope) for scope in ("attention", "block")),
        *(f"{seconds * 1e3:.2f}" for seconds in (prediction.saved, prediction.overhead)),
        _answer(group[0], result.levels),
    ]


def _answer(one: SiteForecast, levels: Sequence[int]) -> str:
    if one.site.level not in levels:
        return "no"
    return "yes" if one.merges else "too small"


def _ceilings(result: Forecast, sites: Sequence[MergeSite]) -> str:
    pairs = [f"{scope} {_pair(result, sites, scope)}" for scope in ("attention", "block")]
    return ", ".join(pairs) + " at 50 %/75 % removed"


def _pair(result: Forecast, sites: Sequence[MergeSite], scope: str) -> str:
    return "/".join(f"{result.ceiling(sites, removed, scope):.2f}" for removed in (0.5, 0.75))
