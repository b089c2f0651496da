"""Level "never-slower" of the benchmark: at no size and length of run does a named recipe lose time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from catome_adapters import RECIPES, SessionSummary, attach
from catome_bench.measure.spread import Spread
from catome_bench.measure.undisturbed import undisturbed
from catome_bench.models.artist import CLASSES, Artist, unmerged_is_fine
from catome_bench.models.pipeline import Arch, ClassPipeline, load_shipped

STEPS_BY_SIZE = {32: (6, 50), 64: (6, 50), 128: (6, 50), 256: (6,)}
"""Pixels along each side, and the lengths of the runs, in steps; at 256 pixels 50 steps would take an hour."""
ARCHS: tuple[Arch, ...] = ("unet", "dit")
"""By default: "dit-patch1" has as many tokens at 64 pixels as "dit" at 128, and takes hours at 256."""
UNMERGED = "unmerged"
LEFT_ALONE = "left unmerged, all recipes"
"""The row of the runs that were left unmerged as a whole, which run the same code whatever the recipe."""
MIN_SECONDS = 5.0
"""Short runs are repeated until the unmerged ones beside a recipe take this long; each session draws twice, since its
first run finds out what to leave alone, and the second one counts."""


class Round(NamedTuple):
    """The seconds of each step of two runs, one right after the other."""

    unmerged: Sequence[float]
    merged: Sequence[float]

    @property
    def speedup(self) -> float:
        """How many times as fast the merged run was."""
        return sum(self.unmerged) / sum(self.merged)


def run_never_slower(
    *, arch: Arch, size: int, steps: Sequence[int] | None = None, repeats: int, device: str = "cpu"
) -> dict[str, Any]:
    """Draw the same picture with every recipe, each time right after an unmerged one, and compare the two times.

    Args:
        arch: Shipped network that draws.
        size: Pixels along each side.
        steps: Lengths of the runs; by default those of `STEPS_BY_SIZE`, or six steps.
        repeats: Rounds of each recipe, at least.
        device: Torch device.

    Returns:
        `{"size", "rows"}`, for JSON. A row has `steps`, `subject` (the recipe), `rounds`, `seconds` (median), `speedup`
        (a `Spread` over the rounds), `undisturbed` (the speed-up if every step takes as long as in its fastest round:
        what else the machine does only adds time, now here and now there), `merged` (the share of the tokens) and
        `unmerged_steps` (the share of sites and steps that were left unmerged since they would lose time). A recipe
        that is refused has a `note`. A last row of each length has the rounds of all recipes whose runs were left
        unmerged as a whole.
    """
    pipeline = load_shipped(arch).to(device)
    lengths = steps or STEPS_BY_SIZE.get(size, (6,))
    rows = [row for total in lengths for row in _compare(Artist(pipeline, total, size), repeats)]
    return {"size": size, "rows": rows}


def _compare(artist: Artist, repeats: int) -> Iterator[dict[str, Any]]:
    # By its last name: the default has two.
    names = {recipe: name for name, recipe in RECIPES.items()}.values()
    notes = {name: _refusal(artist.pipeline, name) for name in names}
    able = [name for name, note in notes.items() if not note]
    Artist(artist.pipeline, 2, artist.size).draw(CLASSES[0], 0, "warm up")
    rounds: dict[str, list[Round]] = {name: [] for name in able}
    summaries: dict[str, SessionSummary] = {}
    while _too_few(rounds, repeats):
        for name in able:
            unmerged = draw_steps(artist, UNMERGED)
            merged, summaries[name] = _draw_merged(artist, name, runs=2 if sum(unmerged) < MIN_SECONDS else 1)
            rounds[name].append(Round(unmerged, merged))
    for name, note in notes.items():
        row: dict[str, Any] = {"steps": artist.steps, "subject": name}
        yield row | ({"note": note} if note else time_of(rounds[name]) | _shares(summaries[name]))
    left_alone = [name for name in able if _is_left_alone(summaries[name])]
    if left_alone:
        every = [one for name in left_alone for one in rounds[name]]
        yield {"steps": artist.steps, "subject": LEFT_ALONE} | time_of(every) | _shares(summaries[left_alone[0]])


def _too_few(rounds: Mapping[str, Sequence[Round]], repeats: int) -> bool:
    some = next(iter(rounds.values()))
    return len(some) < repeats or sum(sum(one.unmerged) for one in some) < MIN_SECONDS


def _refusal(pipeline: ClassPipeline, name: str) -> str:
    """Why a recipe cannot be attached; empty if it can."""
    try:
        with unmerged_is_fine():
            attach(pipeline, RECIPES[name]).detach()
    except ValueError as error:
        return str(error)
    return ""


def _draw_merged(artist: Artist, name: str, runs: int) -> tuple[Sequence[float], SessionSummary]:
    """Draw several times in one session; returns the seconds of the steps of the last, and its summary."""
    with unmerged_is_fine(), attach(artist.pipeline, RECIPES[name]) as session:
        *_, last = (draw_steps(artist, name) for _ in range(runs))
        return last, session.summary()


def draw_steps(artist: Artist, label: str) -> Sequence[float]:
    """Draw; returns the seconds of the steps."""
    return artist.draw(CLASSES[0], 0, label).steps


def time_of(rounds: Sequence[Round]) -> dict[str, Any]:
    """What a row says of its rounds.

    Examples:
        >>> row = time_of([Round([1.0, 9.0], [1.0, 1.0]), Round([2.0, 1.0], [1.0, 2.0])])
        >>> row["rounds"], row["seconds"], row["speedup"]["median"], row["undisturbed"]
        (2, 2.5, 3.0, 1.0)
    """
    unmerged, merged = map(undisturbed, zip(*rounds, strict=True))
    return {
        "rounds": len(rounds),
        "seconds": median(sum(one.merged) for one in rounds),
        "speedup": Spread.of([one.speedup for one in rounds]).to_dict(),
        "undisturbed": unmerged / merged,
    }


def _shares(summary: SessionSummary) -> dict[str, float]:
    unmerged = sum(row.left_unmerged for row in summary.rows) / len(summary.rows)
    return {"merged": summary.merged_fraction, "unmerged_steps": unmerged}


def _is_left_alone(summary: SessionSummary) -> bool:
    """Whether nothing was matched and nothing merged."""
    return not any(row.checkpoint or row.merged_fraction for row in summary.rows)
