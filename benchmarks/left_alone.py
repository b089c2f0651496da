"""What a session costs that leaves a run alone: `python benchmarks/left_alone.py` (a minute or two on two cores).

Runs of the shipped DiT at 32 pixels take turns: without a session, the first one of a session, and its second one.
"""

from __future__ import annotations

import sys

from catome_adapters import attach
from catome_bench.models.artist import Artist, unmerged_is_fine
from catome_bench.models.pipeline import load_shipped
from catome_bench.races.never_slower import Round, draw_steps, time_of
from catome_bench.views.speed import with_interval

ROUNDS, STEPS, PIXELS = 100, 6, 32


def main() -> None:
    """Print how many times as fast each is as the run without: the median with its interval, and undisturbed."""
    artist = Artist(load_shipped("dit"), STEPS, PIXELS)
    rounds: dict[str, list[Round]] = {"first run": [], "second run": []}
    with unmerged_is_fine():
        for _ in range(ROUNDS):
            unmerged = draw_steps(artist, "")
            with attach(artist.pipeline, "balanced"):
                for runs in rounds.values():
                    runs.append(Round(unmerged, draw_steps(artist, "")))
    for name, runs in rounds.items():
        row = time_of(runs)
        speedup, milliseconds = with_interval(row["speedup"]), 1e3 * row["seconds"]
        sys.stdout.write(f"{name:>10}: {milliseconds:.1f} ms, {speedup}, undisturbed {row['undisturbed']:.3f}x\n")


if __name__ == "__main__":
    main()
