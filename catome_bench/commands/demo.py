"""`catome demo`: draw the same pictures with and without merging, and show the difference."""

from __future__ import annotations

import json
from itertools import cycle, islice
from pathlib import Path
from statistics import mean, median
from typing import Any

import typer
from rich.console import Console

from catome_adapters.recipes.calibrated import Recipe
from catome_bench.commands.options import choose_device, find_recipe
from catome_bench.files import check_folder, whole_file
from catome_bench.measure.environment import describe_environment, device_name
from catome_bench.measure.fidelity import psnr, ssim
from catome_bench.measure.spread import for_json
from catome_bench.models.artist import CLASSES, Artist, Pair, unmerged_is_fine
from catome_bench.models.pipeline import load_shipped
from catome_bench.names import Arch
from catome_bench.plots import jaccard_curves, similarity_curves
from catome_bench.views.figures import write_figures
from catome_bench.views.files import save_maps, save_pairs
from catome_bench.views.tables import render_demo


def run_demo(
    arch: Arch, recipe_name: str, *, steps: int, images: int, size: int, output: Path, device: str | None
) -> None:
    """Draw `images` pairs of pictures, print a table, and write pictures, curves and `results.json` to `output`.

    Raises:
        typer.BadParameter: If the recipe does not fit the network, or `output` could not be written.
    """
    device, recipe, console = choose_device(device), find_recipe(recipe_name), Console()
    artist = Artist(load_shipped(arch).to(device), steps, size)
    names = list(islice(cycle(CLASSES), images))
    check_recipe(artist, recipe, names[0])
    check_folder(output, "--output")
    console.print(
        f"{images} pictures by the shipped {arch}, {size} x {size} pixels, {steps} steps, recipe {recipe_name!r}, "
        f"{device_name(device)}"
    )
    warm_up(artist, recipe, names[0])
    pairs = [artist.draw_pair(name, seed, recipe) for seed, name in enumerate(names)]
    recording = artist.record(names[0], 0, recipe)
    results = measure_pairs(pairs)
    console.print(render_demo(results))
    write_figures(output, pairs, recording)
    settings = {"recipe": json.loads(recipe.to_json()), "arch": arch, "steps": steps, "images": images, "size": size}
    report = {
        "machine": describe_environment(device),
        "settings": settings,
        "results": results,
        "jaccard": jaccard_curves(recording.history),
        "similarity": similarity_curves(recording.summary),
        "pictures": save_pairs(output, pairs),
        "merge_maps": save_maps(output, recording.history),
    }
    with whole_file(output / "results.json") as part:
        part.write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"written to {output}: results.json and pictures")


def warm_up(artist: Artist, recipe: Recipe, name: str) -> None:
    """Two untimed steps of each: the first calls of a process load kernels and allocate memory."""
    with unmerged_is_fine():
        Artist(artist.pipeline, 2, artist.size).draw_pair(name, 0, recipe)


def check_recipe(artist: Artist, recipe: Recipe, name: str) -> None:
    """Draw two steps of the smallest picture.

    Raises:
        typer.BadParameter: If the recipe does not fit the network.
    """
    try:
        with unmerged_is_fine():
            Artist(artist.pipeline, 2, 16).draw_pair(name, 0, recipe)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--recipe") from error


def measure_pairs(pairs: list[Pair]) -> dict[str, Any]:
    """Seconds and tokens, averaged over the pictures, and the medians of speed-up and fidelity.

    The PSNR of the same pictures is None, as JSON has no infinity.
    """
    pictures = [(pair.merged.picture, pair.baseline.picture) for pair in pairs]
    return {
        "seconds_per_image": {
            "baseline": mean(pair.baseline.seconds for pair in pairs),
            "merged": mean(pair.merged.seconds for pair in pairs),
        },
        "speedup": median(pair.baseline.seconds / pair.merged.seconds for pair in pairs),
        "merged_fraction": mean(pair.summary.merged_fraction for pair in pairs),
        "checkpoints": list(pairs[0].summary.checkpoints),
        "overflow": sum(pair.summary.overflow for pair in pairs),
        "psnr": for_json(median(psnr(*both) for both in pictures)),
        "ssim": median(ssim(*both) for both in pictures),
    }
