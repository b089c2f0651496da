"""Cells that change in the course of a run, beside equal ones: `python benchmarks/cells.py [cpu|cuda]`, as JSON.

Eight pictures of a shipped model in one call, at 128 pixels, in 10, 20 and 50 steps; two minutes on a large GPU, hours
on a CPU. On the DiT, tokens merge from 30 % of the run on, and queries see all that is near.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from catome_adapters import MergeRecipe, attach
from catome_bench.measure.environment import describe_environment
from catome_bench.measure.fidelity import psnr
from catome_bench.models.artist import CLASSES, Artist, Drawing
from catome_bench.models.pipeline import load_shipped
from catome_core import Lattice

PICTURES, PIXELS, LENGTHS = 8, 128, (10, 20, 50)
HALF, EIGHTH = (1, 2), (2, 4)
KEYS = MergeRecipe(Lattice(), scope="keys", levels=(1,))
# Fractions of the part of the run that merges.
CELLS = {
    "1/2": {},
    "1/4": {"stride": 2},
    "1/8": {"stride": EIGHTH},
    "1/16": {"stride": 4},
    "1/2, then 1/4": {"later": ((0.25, 2),)},
    "1/4, then 1/8": {"stride": 2, "later": ((0.25, EIGHTH),)},
    "1/2, then 1/8": {"later": ((0.25, EIGHTH),)},
    "1/4, then 1/16": {"stride": 2, "later": ((0.25, 4),)},
    "all, then 1/4": {"stride": 1, "later": ((0.1, 2),)},
    "1/8, then 1/4": {"stride": EIGHTH, "later": ((0.5, 2),)},
}


def main() -> None:
    """Print the share of the keys, the speed-up and the PSNR of each kind of cells."""
    device = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    recipes = {name: replace(KEYS, **{"stride": HALF, **cells}) for name, cells in CELLS.items()}
    tables: list[dict[str, Any]] = []
    for arch in ("unet", "dit-patch1"):
        pipe = load_shipped(arch).to(device)
        near = {"policy": Lattice(near=1), "during": (0.3, 1.0)} if arch == "dit-patch1" else {}
        for steps in LENGTHS:
            artist = Artist(pipe, steps, PIXELS)
            draw(Artist(pipe, 2, PIXELS))
            base = draw(artist)
            rows = {name: compare(artist, replace(one, **near), base) for name, one in recipes.items()}
            tables.append({"arch": arch, "steps": steps, "pictures": PICTURES, "rows": rows})
    sys.stdout.write(json.dumps({"machine": describe_environment(device), "tables": tables}, indent=1) + "\n")


def draw(artist: Artist) -> list[Drawing]:
    """The pictures, each of a class and seed of its own."""
    return artist.draw_batch([CLASSES[seed % len(CLASSES)] for seed in range(PICTURES)], range(PICTURES), "")


def compare(artist: Artist, recipe: MergeRecipe, base: list[Drawing]) -> dict[str, float]:
    """What a recipe gains, and how far its pictures are from the unmerged ones."""
    with attach(artist.pipeline, recipe) as session:
        drawn = draw(artist)
        merged = [row.merged_fraction for row in session.summary().rows]
    decibels = [psnr(one.picture, other.picture) for one, other in zip(drawn, base, strict=True)]
    return {
        "speedup": round(base[0].seconds / drawn[0].seconds, 3),
        "keys": round(1 - sum(merged) / len(merged), 3),
        "psnr": round(median(decibels), 2),
        "worst": round(min(decibels), 2),
    }


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
