"""`catome calibrate`: the fidelity that merging costs in each block and in each part of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice, product
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from catome_adapters import MergeSite, attach, find_sites
from catome_bench.commands.options import choose_device
from catome_bench.files import check_file, whole_file
from catome_bench.measure.fidelity import mean_psnr
from catome_bench.models.artist import CLASSES, Artist, Drawing
from catome_bench.models.pipeline import load_shipped
from catome_bench.names import Arch
from catome_bench.races.variants import fixed_share

PARTS = {"early": (0.0, 1 / 3), "middle": (1 / 3, 2 / 3), "late": (2 / 3, 1.0), "whole run": (0.0, 1.0)}
# The scope that saves the most first.
SCOPES: tuple[str, ...] = ("block", "attention", "keys")

Fidelity = dict[str, dict[str, dict[str, float]]]


def run_calibration(
    arch: Arch, *, steps: int, images: int, size: int, floor: float, output: Path, device: str | None
) -> None:
    """Draw with every setting, print a table, and write its figures to `output`."""
    device = choose_device(device)
    check_file(output, "--output")
    artist = Artist(load_shipped(arch).to(device), steps, size)
    fidelity = measure_fidelity(artist, list(islice(cycle(CLASSES), images)))
    best = {site: best_scopes(parts, floor) for site, parts in fidelity.items()}
    Console().print(render_calibration(fidelity, floor))
    settings = {"arch": arch, "steps": steps, "images": images, "size": size, "floor": floor}
    with whole_file(output) as part:
        part.write_text(json.dumps({"settings": settings, "psnr": fidelity, "best": best}, indent=2) + "\n")


def measure_fidelity(artist: Artist, motifs: Sequence[str]) -> Fidelity:
    """PSNR in dB against the unmerged pictures when one site merges in one scope and one part of the run.

    Returns:
        A figure by site, part and scope.
    """
    references = [artist.draw(motif, seed, "unmerged") for seed, motif in enumerate(motifs)]
    sites = find_sites(artist.pipeline)
    fidelity: Fidelity = {site.name: {part: {} for part in PARTS} for site in sites}
    for site, part, scope in tqdm(list(product(sites, PARTS, SCOPES)), unit="setting"):
        fidelity[site.name][part][scope] = _fidelity(artist, site, part, scope, motifs, references)
    return fidelity


def best_scopes(parts: Mapping[str, Mapping[str, float]], floor: float) -> dict[str, str | None]:
    """For every part of the run, the scope that saves the most among those with at least `floor` dB; None if none has.

    Examples:
        >>> best_scopes({"early": {"block": 31.0, "keys": 44.0}, "late": {"block": 35.0, "keys": 39.0}}, floor=40)
        {'early': 'keys', 'late': None}
    """
    return {
        part: next((scope for scope in SCOPES if scope in psnr and psnr[scope] >= floor), None)
        for part, psnr in parts.items()
    }


def render_calibration(fidelity: Fidelity, floor: float) -> Table:
    """A table with a row for each site and scope and a column for each part of the run; the best scope is marked."""
    table = Table(title=f"PSNR in dB with half of one block's tokens merged; * saves most at {floor:g} dB")
    table.add_column("block", overflow="fold")
    for name in ("scope", *PARTS):
        table.add_column(name, no_wrap=True, justify="left" if name == "scope" else "right")
    for site, parts in fidelity.items():
        best = best_scopes(parts, floor)
        for scope in SCOPES:
            head = site.replace("transformer_blocks.", "") if scope == SCOPES[0] else ""
            cells = (f"{parts[part][scope]:.1f}{'*' if best[part] == scope else ' '}" for part in PARTS)
            table.add_row(head, scope, *cells, end_section=scope == SCOPES[-1])
    return table


def _fidelity(
    artist: Artist, site: MergeSite, part: str, scope: str, motifs: Sequence[str], references: Sequence[Drawing]
) -> float:
    recipe = replace(fixed_share(0.5, scope=scope), during=PARTS[part])
    with attach(artist.pipeline, recipe, sites=[site]):
        drawings = [artist.draw(motif, seed, scope) for seed, motif in enumerate(motifs)]
    return mean_psnr([drawing.picture for drawing in drawings], [drawing.picture for drawing in references])
