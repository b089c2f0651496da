"""What a session is attached to, as text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from catome_adapters.hooks.scopes import SCOPES
from catome_adapters.hooks.segment import Segment
from catome_adapters.hooks.settled import is_only_compiled
from catome_adapters.prediction.seconds import TYPICAL_BATCH, predict_site, typical_grid
from catome_adapters.recipes.recipe import MergeRecipe
from catome_adapters.reports.names import group_name, name_groups
from catome_adapters.sites.site import MergeSite, SkippedSite
from catome_core import TokenGrid

REPORT_COLUMNS = ("", "level", "tokens", "grid", "channels", "50 %", "75 %", "saves ms", "costs ms")
REPORT_NOTE = (
    "predicted for a call of one block: speed-up if 50 % or 75 % of its tokens merged for free; ms saved and spent"
)


class SiteReport(NamedTuple):
    """One attached site in the report.

    Attributes:
        site: The site.
        grid: The grid of the last call; None before the first.
        batch: The batch of the last call.
        unmerged: Whether the last call was of a size at which merging would lose, so that nothing merged.
        device_type: Where its tokens were; empty before the first: where the weights are.
        compiled: Whether it was in compiled code.
    """

    site: MergeSite
    grid: TokenGrid | None = None
    batch: int = TYPICAL_BATCH
    unmerged: bool = False
    device_type: str = ""
    compiled: bool = False

    @property
    def status(self) -> str:
        """What has become of the site so far."""
        if self.grid is None:
            return "not run yet: figures of the model's default size"
        return "but left unmerged in the last call, too small to gain" if self.unmerged else "figures of the last call"


def report_segment(segment: Segment) -> Iterator[SiteReport]:
    """The sites of a segment: all by its one plan, or each by its own."""
    for index, site in enumerate(segment.sites):
        last = segment.last_calls[min(index, len(segment.last_calls) - 1)]
        if last.key is None:
            yield SiteReport(site)
        else:
            where = last.key.device.type, is_only_compiled(segment)
            yield SiteReport(site, last.key.grid, last.key.batch, not last.pays_off, *where)


def render_report(recipe: MergeRecipe, attached: Sequence[SiteReport], skipped: Sequence[SkippedSite]) -> str:
    """The text of `MergeSession.report`: headings, and under each the blocks of a transformer as one row."""
    parts = [SCOPES[recipe.scope].describe(recipe.scope, recipe.segment)]
    parts += [f"metric {recipe.metric}"] if recipe.metric != "input" else []
    parts += [f"during {recipe.during}"] if recipe.during != (0.0, 1.0) else []
    parts += [f"stride {recipe.stride}, later {recipe.later}"] if recipe.later else []
    parts += [f"proportional {recipe.proportional}", f"levels {recipe.levels}", str(recipe.policy)]
    groups: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for view in attached:
        groups[f"attached, {view.status}"].append(_report_cells(view, recipe))
    for candidate in skipped:
        row = _report_cells(SiteReport(candidate.site), recipe) if candidate.site else (candidate.name,)
        groups[f"not attached, {candidate.reason}"].append(row)
    lines = [line for heading, rows in groups.items() for line in (f"{heading}:", *_merge_rows(rows))]
    return "\n".join([", ".join(parts), REPORT_NOTE, _row(REPORT_COLUMNS), *lines])


def _report_cells(view: SiteReport, recipe: MergeRecipe) -> tuple[str, ...]:
    """The figures of a site; "?" where the model has no default size and was not called."""
    site, grid = view.site, view.grid or typical_grid(view.site, recipe)
    if grid is None:
        return (site.name, str(site.level), "?")
    prediction = predict_site(site, recipe, grid, view.batch, view.device_type, compiled=view.compiled)
    return (
        site.name,
        str(site.level),
        f"{prediction.tokens:,}",
        " x ".join(map(str, grid.shape)),
        str(prediction.channels),
        f"{prediction.ceiling_50:.2f}x",
        f"{prediction.ceiling_75:.2f}x",
        f"{prediction.saved * 1e3:.2f}",
        f"{prediction.overhead * 1e3:.2f}",
    )


def _merge_rows(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Equal figures are those of one transformer's blocks: one line says how many."""
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for name, *figures in rows:
        groups[group_name(name), tuple(figures)].append(name)
    names = name_groups([(group, sites) for (group, _), sites in groups.items()])
    return [_row((f"  {name}", *figures)) for name, (_, figures) in zip(names, groups, strict=True)]


def _row(cells: Sequence[str]) -> str:
    widths = (6, 8, 11, 9, 8, 8, 10, 10)
    return f"{cells[0]:<32}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells[1:], widths, strict=False))
