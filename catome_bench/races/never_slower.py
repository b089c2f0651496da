"""Level "never-slower" of the benchmark: at no size and length of run does a named recipe lose time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from catome_adapters import RECIPES, SessionSummary, attach
from catome_bench.measure.spread import Spread
from catome_bench.models.artist import CLASSES, Artist, unmerged_is_fine
from catome_bench.models.pipeline import Arch, ClassPipeline, load_shipped

STEPS_BY_SIZE = {32: (6, 50), 64: (6, 50), 128: (6, 50), 256: (6,)}
"""Pixels along each side, and the lengths of the runs, in steps; at 256 pixels 50 steps would take an hour."""
ARCHS: tuple[Arch, ...] = ("unet", "dit")
"""By default: "dit-patch1" has as many tokens at 64 pixels as "dit" at 128, and takes hours at 256."""
UNMERGED = "unmerged"
MIN_SECONDS = 8.0
"""Short runs are repeated until the unmerged ones beside a recipe take this long; each session draws twice, since its
first run finds out what to leave alone, and the second one counts."""


def run_never_slower(*, arch: Arch, size: int, repeats: int, device: str = "cpu") -> dict[str, Any]:
    """Draw the same picture with every recipe, each time right after an unmerged one, and compare the two times.

    Returns:
        `{"size", "rows"}`, for JSON. A row has `steps`, `subject` (the recipe), `rounds`, `seconds` (median), `speedup`
        (a `Spread` over the rounds), `fastest` (the speed-up of the fastest round over the fastest unmerged one: what
        else the machine does only adds time), `merged` (the share of the tokens) and `unmerged_steps` (the share of
        sites and steps that were left unmerged since they would lose time). A recipe that is refused has a `note`.
    """
    pipeline = load_shipped(arch).to(device)
    rows = [row for steps in STEPS_BY_SIZE[size] for row in _compare(Artist(pipeline, steps, size), repeats)]
    return {"size": size, "rows": rows}


def _compare(artist: Artist, repeats: int) -> Iterator[dict[str, Any]]:
    # By its last name: the default has two.
    names = {recipe: name for name, recipe in RECIPES.items()}.values()
    notes = {name: _refusal(artist.pipeline, name) for name in names}
    able = [name for name, note in notes.items() if not note]
    Artist(artist.pipeline, 2, artist.size).draw(CLASSES[0], 0, "warm up")
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in able}
    summaries: dict[str, SessionSummary] = {}
    while _too_few(pairs, repeats):
        for name in able:
            base = artist.draw(CLASSES[0], 0, UNMERGED).seconds
            taken, summaries[name] = _draw_merged(artist, name, runs=2 if base < MIN_SECONDS else 1)
            pairs[name].append((base, taken))
    for name, note in notes.items():
        row: dict[str, Any] = {"steps": artist.steps, "subject": name}
        yield row | ({"note": note} if note else _figures(pairs[name], summaries[name]))


def _too_few(pairs: Mapping[str, Sequence[tuple[float, float]]], repeats: int) -> bool:
    rounds = next(iter(pairs.values()))
    return len(rounds) < repeats or sum(base for base, _ in rounds) < MIN_SECONDS


def _refusal(pipeline: ClassPipeline, name: str) -> str:
    """Why a recipe cannot be attached; empty if it can."""
    try:
        with unmerged_is_fine():
            attach(pipeline, RECIPES[name]).detach()
    except ValueError as error:
        return str(error)
    return ""


def _draw_merged(artist: Artist, name: str, runs: int) -> tuple[float, SessionSummary]:
    """Draw so many times in one session; returns the seconds of the last, and its summary."""
    with unmerged_is_fine(), attach(artist.pipeline, RECIPES[name]) as session:
        *_, last = (artist.draw(CLASSES[0], 0, name).seconds for _ in range(runs))
        return last, session.summary()


def _figures(pairs: Sequence[tuple[float, float]], summary: SessionSummary) -> dict[str, Any]:
    bases, merged = zip(*pairs, strict=True)
    return {
        "rounds": len(pairs),
        "seconds": median(merged),
        "speedup": Spread.of([base / taken for base, taken in pairs]).to_dict(),
        "fastest": min(bases) / min(merged),
        "merged": summary.merged_fraction,
        "unmerged_steps": sum(row.left_unmerged for row in summary.rows) / len(summary.rows),
    }
