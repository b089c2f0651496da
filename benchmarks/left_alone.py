"""What a session costs that leaves a run alone: `python benchmarks/left_alone.py` (a minute on two cores).

Runs of the shipped DiT at 32 pixels take turns: without a session, the first one of a session, and its second one.
"""

from __future__ import annotations

import sys
from statistics import median, quantiles

from catome_adapters import attach
from catome_bench.models.artist import Artist, unmerged_is_fine
from catome_bench.models.pipeline import load_shipped

ROUNDS, STEPS, PIXELS = 45, 6, 32


def main() -> None:
    """Print the median and the quartiles of each, in milliseconds."""
    artist = Artist(load_shipped("dit"), STEPS, PIXELS)

    def seconds() -> float:
        return artist.draw("cat", 0, "").seconds

    taken: dict[str, list[float]] = {"no session": [], "first run": [], "second run": []}
    with unmerged_is_fine():
        for _ in range(ROUNDS):
            taken["no session"].append(seconds())
            with attach(artist.pipeline, "balanced"):
                taken["first run"].append(seconds())
                taken["second run"].append(seconds())
    for name, times in taken.items():
        low, _, high = quantiles(times, n=4)
        sys.stdout.write(f"{name:>10}: {1e3 * median(times):.1f} ms ({1e3 * low:.1f} - {1e3 * high:.1f})\n")


if __name__ == "__main__":
    main()
