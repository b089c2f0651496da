"""What a session did, as data and as text."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from torch import Tensor

from catome_adapters.prediction import USUAL_BATCH, predict_site, usual_grid
from catome_adapters.recipe import MergeRecipe
from catome_adapters.sites import MergeSite, SkippedSite
from catome_core import TokenGrid
from catome_core.cache import PlanKey

REPORT_COLUMNS = ("", "level", "tokens", "grid", "channels", "50 %", "75 %", "saves ms", "costs ms")
REPORT_NOTE = (
    "predicted for a call of one block: speed-up if 50 % or 75 % of its tokens merged for free; ms saved and spent"
)


class SiteState(NamedTuple):
    """The plan of one site during one step; `wanted` (batch,) stays on the device until somebody asks."""

    name: str
    key: PlanKey | None
    spare: str
    capacity: float | None
    wanted: Tensor | None

    @property
    def grid(self) -> TokenGrid:
        """The grid of a site that has run."""
        assert self.key is not None
        return self.key.grid

    @classmethod
    def unknown(cls, name: str) -> SiteState:
        """A site that has not run yet."""
        return cls(name, None, "pad", None, None)


class SiteStep(NamedTuple):
    """One site in one step.

    Attributes:
        site: Its name.
        step: From 0.
        checkpoint: Whether pairs were recomputed.
        tokens: Tokens before the merge.
        slots: Slots that were computed, padding included.
        mergeable_fraction: Share of the tokens that is above the threshold, mean over the batch.
        merged_fraction: Share of the tokens that was merged away, mean over the batch.
        capacity: Kept places as a fraction of the tokens: the rung of the ladder.
        overflow: Sources that merged below the threshold for want of places, summed over the batch.
    """

    site: str
    step: int
    checkpoint: bool
    tokens: int
    slots: int
    mergeable_fraction: float
    merged_fraction: float
    capacity: float
    overflow: int


class SiteView(NamedTuple):
    """One attached site in the report.

    Attributes:
        site: The site.
        grid: Of the last call; None before the first.
        batch: Of the last call.
        whole: Whether the last call was of a size at which merging would lose, so that nothing merged.
    """

    site: MergeSite
    grid: TokenGrid | None = None
    batch: int = USUAL_BATCH
    whole: bool = False

    @property
    def status(self) -> str:
        """What has become of the site so far."""
        if self.grid is None:
            return "not run yet: figures of the model's default size"
        return "but left whole in the last call, too small to gain" if self.whole else "figures of the last call"


class StepRecord(NamedTuple):
    """All sites in one step."""

    step: int
    checkpoint: bool
    states: tuple[SiteState, ...]

    def rows(self) -> Iterator[SiteStep]:
        """One row per site that ran; reads from the device."""
        for state in self.states:
            if state.key is not None and state.wanted is not None:
                yield self._row(state, state.grid, state.wanted.tolist())

    def _row(self, state: SiteState, grid: TokenGrid, wanted: list[int]) -> SiteStep:
        places = grid.places(state.capacity)
        kept = [places if state.spare == "fill" else min(want, places) for want in wanted]
        mergeable, merged = ((grid.sources - sum(left) / len(wanted)) / grid.tokens for left in (wanted, kept))
        overflow = sum(max(0, want - places) for want in wanted)
        slots = grid.prefix + grid.destinations + places
        return SiteStep(
            state.name, self.step, self.checkpoint, grid.tokens, slots, mergeable, merged, places / grid.area, overflow
        )


class SessionSummary(NamedTuple):
    """Every site and step of a run, oldest first; printed as one line a site."""

    rows: tuple[SiteStep, ...]

    @property
    def merged_fraction(self) -> float:
        """Share of the tokens that was merged away, mean over sites and steps; 0 before the first step."""
        return sum(row.merged_fraction for row in self.rows) / max(1, len(self.rows))

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """The steps that recomputed."""
        return tuple(sorted({row.step for row in self.rows if row.checkpoint}))

    @property
    def overflow(self) -> int:
        """Sources that merged below the threshold for want of places, over the whole run."""
        return sum(row.overflow for row in self.rows)

    def __str__(self) -> str:
        if not self.rows:
            return "no step has been run yet"
        lines = [_line("site", "steps", "checkpoints", "tokens", "slots", "merged", "overflow")]
        ordered = sorted(self.rows, key=lambda row: row.site)
        lines += [_site_line(site, list(rows)) for site, rows in groupby(ordered, key=lambda row: row.site)]
        return "\n".join(lines)


def render_report(recipe: MergeRecipe, attached: Sequence[SiteView], skipped: Sequence[SkippedSite]) -> str:
    """The text of `MergeSession.report`: headings, and under each the blocks of a transformer as one row."""
    plain = {"metric": "input", "segment": 1, "during": (0.0, 1.0), "progressive": False}
    extra = "".join(f", {name} {getattr(recipe, name)}" for name in plain if getattr(recipe, name) != plain[name])
    head = f"scope {recipe.scope}{extra}, proportional {recipe.proportional}, levels {recipe.levels}, {recipe.policy}"
    groups: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for view in attached:
        groups[f"attached, {view.status}"].append(_cells(view, recipe))
    for place in skipped:
        row = _cells(SiteView(place.site), recipe) if place.site else (place.name,)
        groups[f"not attached, {place.reason}"].append(row)
    lines = [line for heading, rows in groups.items() for line in (f"{heading}:", *_merge_rows(rows))]
    return "\n".join([head, REPORT_NOTE, _row(REPORT_COLUMNS), *lines])


def _cells(view: SiteView, recipe: MergeRecipe) -> tuple[str, ...]:
    """The figures of a site; "?" where the model tells no size and has not been called."""
    site, grid = view.site, view.grid or usual_grid(view.site, recipe)
    name = site.name.rpartition(".")[0].removesuffix(".transformer_blocks") or site.name
    if grid is None:
        return (name, str(site.level), "?")
    prediction = predict_site(site, recipe, grid, view.batch)
    return (
        name,
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
    """Equal rows are blocks of one transformer: one line says how many."""
    return [_row((f"  {row[0]}" + f" x {count}" * (count > 1), *row[1:])) for row, count in Counter(rows).items()]


def _row(cells: Sequence[str]) -> str:
    widths = (6, 8, 11, 9, 8, 8, 10, 10)
    return f"{cells[0]:<32}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells[1:], widths, strict=False))


def _site_line(site: str, rows: list[SiteStep]) -> str:
    slots = sorted({row.slots for row in rows})
    merged = sum(row.merged_fraction for row in rows) / len(rows)
    return _line(
        site,
        len(rows),
        sum(row.checkpoint for row in rows),
        rows[0].tokens,
        f"{slots[0]}-{slots[-1]}" if len(slots) > 1 else slots[0],
        f"{merged:.1%}",
        sum(row.overflow for row in rows),
    )


def _line(site: object, *columns: object) -> str:
    return f"{site!s:<55}" + "".join(f"{column!s:>12}" for column in columns)
