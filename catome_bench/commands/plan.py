"""`catome plan`: where merging pays off in a model, from its configuration alone; nothing is loaded or run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Sequence
from itertools import groupby

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from catome_adapters import SCOPES, MergeRecipe, MergeSite
from catome_adapters.prediction.seconds import TYPICAL_BATCH
from catome_adapters.prediction.worth import MIN_GAIN
from catome_adapters.recipes.parts import share_of_run
from catome_adapters.reports.names import group_name
from catome_bench.commands.options import default_device, find_recipe
from catome_bench.planning.blueprint import read_blueprint
from catome_bench.planning.costs import describe_graphs, held_bytes
from catome_bench.planning.forecast import Forecast, forecast
from catome_bench.planning.site_forecast import SiteForecast

MIN_COLUMNS = 160
"""Width of the terminal that the table needs; in a narrower one it would lose its figures."""
COLUMNS = ("\nlevel", "\ntokens", "\nchannels", "share\nattention", "share\nblock")
COLUMNS += ("ceiling\nattention", "ceiling\nblock", "saves\nms", "costs\nms", "\nmerges")
SHARES = {1 / 2: "half", 1 / 4: "a quarter", 1 / 8: "an eighth"}


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
        name = recipe or ("default" if built.denoises else "vit")
        pixels, chosen = (frames, height, width), find_recipe(name)
        result = forecast(built, pixels, chosen, device, compiled=True)
        eager = None if device == "cpu" else forecast(built, pixels, chosen, device)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    console = Console(width=max(Console().width, MIN_COLUMNS))
    console.print(verdict(result, name, eager), highlight=False, soft_wrap=True)
    console.print(render_forecast(result), *closing_lines(result), sep="\n")


def verdict(result: Forecast, name: str, eager: Forecast | None = None) -> str:
    """What to expect of the recipe of this name, where to attach, and what that costs beside time.

    Args:
        result: The forecast.
        name: Of the recipe.
        eager: The same without compilation; None where it makes no difference.
    """
    attach = f"attach at {_levels(result)}"
    if not all(SCOPES[one.scope].predictable for one in result.distinct_recipes):
        return f"{name!r} merges on from block to block, which figures of one block do not show; {attach}"
    if not result.merging:
        enough = f"{MIN_GAIN:.0%} of the network's time"
        where = f"on {result.device_type} with {name!r}"
        return f"no gain expected {where}: at this size no block saves {enough}, and larger sizes gain more"
    once_compiled = "" if eager is None else f", once compiled ({eager.speedup:.2f}x without)"
    parts = ", ".join(dict.fromkeys(_part(site.name) for site in result.merging))
    costs = f"it holds {_bytes(_held(result))} between steps, and compiles to "
    return (
        f"expected {result.speedup:.2f}x on {result.device_type}{once_compiled} with {name!r}, "
        f"{_what_is_left(result)}; {attach}: {parts}\n{costs}{_graphs(result)}"
    )


def render_forecast(result: Forecast) -> Table:
    """A table with one row for the blocks of each transformer, which share a grid."""
    note = (
        f"share: of the model's arithmetic{'' if result.counted else ' on tokens of the grid (not of text) in blocks'}."
    )
    note += "\nceiling: of the model, by these blocks alone, at 50 %/75 % removed."
    scopes = " or ".join(dict.fromkeys(one.scope for one in result.distinct_recipes))
    setting = f"scope {scopes}, {result.device_type}, batch {TYPICAL_BATCH}"
    note += f"\nms: predicted for a call of one block, {setting}."
    table = Table(box=SIMPLE_HEAD, caption=note, caption_justify="left", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("blocks", no_wrap=True, vertical="bottom")
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for (name, _), group in groupby(result.sites, key=lambda one: _row_of(result, one.site.name)):
        table.add_row(*_cells(result, name, list(group)))
    return table


def closing_lines(result: Forecast) -> list[str]:
    """The ceiling of the whole model, at the chosen levels and at all levels."""
    sites = [one.site for one in result.sites]
    chosen = [site for site in sites if site.level in result.levels]
    return [
        f"the model's ceiling, {_levels(result)}: {_ceilings(result, chosen)}",
        f"the model's ceiling, all levels: {_ceilings(result, sites)}",
    ]


def _row_of(result: Forecast, site: str) -> tuple[str, MergeRecipe | None]:
    return group_name(site), result.recipes.get(site)


def _levels(result: Forecast) -> str:
    return f"level{'s' if len(result.levels) > 1 else ''} {', '.join(map(str, result.levels))}"


def _what_is_left(result: Forecast) -> str:
    """Such as "at a quarter of the keys"; where the data will decide, what is assumed of it."""
    recipe, *others = result.distinct_recipes
    if others:
        return f"{len(others) + 1} recipes for {len(result.recipes)} sites"
    what = "tokens" if SCOPES[recipe.scope].merges_queries else "keys"
    steps = share_of_run(recipe)
    when = "" if steps == 1 else f", in {steps:.0%} of the steps"
    if recipe.policy.adapts:
        return f"if half of the {what} merge{when}"
    # Class tokens never merge, so that a ViT keeps a little more.
    words = [word for share, word in SHARES.items() if abs(share - result.kept) < 0.005]
    return f"at {words[0] if words else f'{result.kept:.0%}'} of the {what}{when}"


def _held(result: Forecast) -> int:
    """Bytes between steps."""
    by_recipe: dict[MergeRecipe, list[MergeSite]] = defaultdict(list)
    for site in result.merging:
        by_recipe[result.recipes[site.name]].append(site)
    return sum(held_bytes(sites, recipe) for recipe, sites in by_recipe.items())


def _graphs(result: Forecast) -> str:
    return "; or ".join(dict.fromkeys(describe_graphs(one, result.denoises) for one in result.distinct_recipes))


def _part(site: str) -> str:
    """The part of the network that a site belongs to.

    Examples:
        >>> _part("down_blocks.0.attentions.1.transformer_blocks.0"), _part("transformer_2.blocks.7")
        ('down_blocks.0', 'transformer_2.blocks')
    """
    part, inside, _ = site.partition(".attentions")
    return part if inside else group_name(site)


def _bytes(number: int) -> str:
    return f"{number:,} bytes" if number < 2**20 else f"{number / 2**20:.1f} MiB"


def _cells(result: Forecast, name: str, group: Sequence[SiteForecast]) -> list[str]:
    (site, prediction, *_), sites = group[0], [one.site for one in group]
    return [
        f"{name} x {len(group)}" if len(group) > 1 else name,
        str(site.level),
        f"{prediction.tokens:,}",
        str(prediction.channels),
        *(f"{result.share(sites, scope):.1%}" for scope in ("attention", "block")),
        *(_pair(result, sites, scope) for scope in ("attention", "block")),
        *(f"{seconds * 1e3:.2f}" for seconds in (prediction.saved, prediction.overhead)),
        _answer(group[0], result.recipes),
    ]


def _answer(one: SiteForecast, attached: Container[str]) -> str:
    if one.site.name not in attached:
        return "no"
    return "yes" if one.merges else "too small"


def _ceilings(result: Forecast, sites: Sequence[MergeSite]) -> str:
    pairs = [f"{scope} {_pair(result, sites, scope)}" for scope in ("attention", "block")]
    return ", ".join(pairs) + " at 50 %/75 % removed"


def _pair(result: Forecast, sites: Sequence[MergeSite], scope: str) -> str:
    return "/".join(f"{result.ceiling(sites, removed, scope):.2f}" for removed in (0.5, 0.75))
