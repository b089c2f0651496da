"""Draw the same pictures with and without merging, and write what changed."""

from __future__ import annotations

import json
import platform
import time
from collections import defaultdict
from dataclasses import replace
from importlib.metadata import version
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from catome_adapters import MergeRecipe, SessionSummary, attach
from catome_bench import figures
from catome_bench.pipeline import Arch, ClassPipeline, load_shipped
from catome_core import CheckpointSchedule, MergePlan, jaccard_distance

CLASSES = ("cat", "coffee", "flower", "temple", "rocket")


class Drawing(NamedTuple):
    """One picture (3, size, size) in [0, 1] and the seconds it took."""

    picture: Tensor
    seconds: float


class Pair(NamedTuple):
    """The same class and seed, drawn twice; `summary` is the merged run's."""

    name: str
    baseline: Drawing
    merged: Drawing
    summary: SessionSummary


class Artist:
    """Draws one picture at a time, each with a seed of its own."""

    def __init__(self, pipeline: ClassPipeline, steps: int, size: int) -> None:
        self.pipeline, self.steps, self.size = pipeline, steps, size

    def draw(self, name: str, seed: int, label: str) -> Drawing:
        """Draw one picture of class `name`, under a progress bar."""
        self.pipeline.set_progress_bar_config(desc=f"{name:>9}, {label:<8}", leave=False)
        generator = torch.Generator().manual_seed(seed)
        start = time.perf_counter()
        pictures = self.pipeline([name], size=self.size, num_inference_steps=self.steps, generator=generator)
        # Copying to the host waits for the device.
        return Drawing(pictures[0].cpu(), time.perf_counter() - start)

    def draw_pair(self, name: str, seed: int, recipe: MergeRecipe) -> Pair:
        """Draw a picture without and with merging, one after the other, so that both meet the same machine."""
        baseline = self.draw(name, seed, "baseline")
        with attach(self.pipeline, recipe) as session:
            merged = self.draw(name, seed, "merged")
            return Pair(name, baseline, merged, session.summary())

    def record(self, name: str, seed: int, recipe: MergeRecipe) -> list[dict[str, MergePlan]]:
        """The pairs above the threshold at every site and step, recomputed at all of them (paper, Fig. 4)."""
        policy = replace(recipe.policy, capacity=1.0, spare="pad")
        every = replace(recipe, policy=policy, schedule=CheckpointSchedule.every(1, self.steps), levels="top")
        history: list[dict[str, MergePlan]] = []
        with attach(self.pipeline, every) as session:
            handle = self.pipeline.network.register_forward_hook(lambda *_: history.append(session.plans()))
            try:
                self.draw(name, seed, "pairs")
            finally:
                handle.remove()
        return history


def run_demo(
    arch: Arch, recipe: MergeRecipe, recipe_name: str, *, steps: int, images: int, size: int, output: Path, device: str
) -> None:
    """Draw `images` pairs of pictures, print a table, and write pictures, curves and `results.json` to `output`."""
    console = Console()
    artist = Artist(load_shipped(arch).to(device), steps, size)
    names = list(islice(cycle(CLASSES), images))
    console.print(
        f"{images} pictures by the shipped {arch}, {size} x {size} pixels, {steps} steps, recipe {recipe_name!r}, "
        f"{device_name(device)}"
    )
    warm_up(artist, recipe, names[0])
    pairs = [artist.draw_pair(name, seed, recipe) for seed, name in enumerate(names)]
    history = artist.record(names[0], 0, recipe)
    results = measure(pairs)
    console.print(render(results))
    curves = jaccard(history)
    figures.write_all(output, pairs, history, curves)
    settings = {"recipe": json.loads(recipe.to_json()), "arch": arch, "steps": steps, "images": images, "size": size}
    report = {"machine": machine(device), "settings": settings, "results": results, "jaccard": curves}
    (output / "results.json").write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"written to {output}: " + ", ".join(sorted(file.name for file in output.iterdir())))


def warm_up(artist: Artist, recipe: MergeRecipe, name: str) -> None:
    """Two steps of each, untimed: the first calls of a process load kernels and memory."""
    Artist(artist.pipeline, 2, artist.size).draw_pair(name, 0, recipe)


def measure(pairs: list[Pair]) -> dict[str, Any]:
    """Seconds, tokens and fidelity, means over the pictures."""
    baseline = torch.stack([pair.baseline.picture for pair in pairs])
    merged = torch.stack([pair.merged.picture for pair in pairs])
    seconds = [sum(getattr(pair, side).seconds for pair in pairs) / len(pairs) for side in ("baseline", "merged")]
    speedups = [pair.baseline.seconds / pair.merged.seconds for pair in pairs]
    psnr = [peak_signal_noise_ratio(a, b, data_range=1.0).item() for a, b in zip(merged, baseline, strict=True)]
    return {
        "seconds_per_image": {"baseline": seconds[0], "merged": seconds[1]},
        "speedup": torch.tensor(speedups).median().item(),
        "merged_fraction": sum(pair.summary.merged_fraction for pair in pairs) / len(pairs),
        "checkpoints": list(pairs[0].summary.checkpoints),
        "overflow": sum(pair.summary.overflow for pair in pairs),
        "psnr": sum(psnr) / len(psnr),
        "ssim": structural_similarity_index_measure(merged, baseline, data_range=1.0).item(),
    }


def jaccard(history: list[dict[str, MergePlan]]) -> dict[str, list[float]]:
    """Distance of every layer's pairs between neighbouring steps, mean over the batch (paper, Fig. 4)."""
    curves = defaultdict(list)
    for before, after in pairwise(history):
        for site in before:
            curves[site].append(jaccard_distance(before[site], after[site]).mean().item())
    return dict(curves)


def render(results: dict[str, Any]) -> Table:
    """The figures as a table."""
    table = Table("", "s/image", "speed-up", "merged", "checkpoints", "PSNR", "SSIM")
    seconds = results["seconds_per_image"]
    table.add_row("baseline", f"{seconds['baseline']:.2f}", "1.00x", "0 %", "-", "-", "-")
    table.add_row(
        "CA-ToMe",
        f"{seconds['merged']:.2f}",
        f"{results['speedup']:.2f}x",
        f"{results['merged_fraction']:.0%}",
        str(len(results["checkpoints"])),
        f"{results['psnr']:.1f} dB",
        f"{results['ssim']:.4f}",
    )
    return table


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    packages = {name: version(name) for name in ("torch", "diffusers", "catome")}
    host = {"device": device_name(device), "threads": torch.get_num_threads(), "python": platform.python_version()}
    return host | packages


def device_name(device: str) -> str:
    """The GPU's name, or the processor's."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.backends.cpu.get_cpu_capability()} CPU, {torch.get_num_threads()} threads"
