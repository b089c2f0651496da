"""Draw the paper's Tables I to IV with a pipeline: time, Frechet distance and fidelity of every row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from catome_adapters import MergeRecipe, find_sites, sessions
from catome_bench.comparison.arguments import motif_of
from catome_bench.comparison.drawing import device_of, is_compiled
from catome_bench.comparison.identity import identify
from catome_bench.measure.environment import PACKAGES
from catome_bench.measure.features import Features, open_features
from catome_bench.measure.versions import installed_version
from catome_bench.names import SWEEP_TABLES
from catome_bench.races.variants import Variant
from catome_bench.sweeping.prompts import digest_of
from catome_bench.sweeping.real import find_pictures
from catome_bench.sweeping.store import SETTINGS, Store
from catome_bench.sweeping.sweep import Sweep
from catome_bench.sweeping.swept import Swept
from catome_bench.sweeping.tables import recipes_of, rows_of
from catome_bench.sweeping.takes import Shard, all_takes
from catome_bench.sweeping.tally import tally

__all__ = ["Swept", "measure_sweep", "sweep"]

DRAWN_BY = (*PACKAGES, "tomesd", "ca-tome")
"""Packages whose versions change pictures."""
RESERVED = {"num_inference_steps", "generator", "prompt", "classes"}
"""Arguments of the pipeline that a sweep passes itself."""


def sweep(
    pipe: Any,
    prompts: Sequence[str],
    *,
    output: str | Path,
    tables: Sequence[str] = SWEEP_TABLES,
    seeds: int = 2,
    steps: int = 50,
    options: Mapping[str, Any] | None = None,
    real: str | Path | None = None,
    features: str | Path | None = None,
    progress: bool = True,
) -> Swept:
    """Draw the same pictures by every row of the paper's tables, into a folder, and measure them.

    The folder may hold a part of them already: what is there is not drawn again, so a sweep that was ended in any way
    goes on. Several processes, as `torchrun` starts them, each draw a part; whichever is the last one measures. All
    rows draw a picture one right after the other, in one process, so that their times can be compared. A row that the
    pipeline cannot draw is left out, with the reason.

    Args:
        pipe: A pipeline of diffusers that takes a prompt, or a shipped one, without a session, not compiled.
        prompts: What to draw; for the shipped pipelines, names of classes.
        output: The folder.
        tables: Out of "thresholds", "configurations", "caching" and "comparison", the paper's Tables I to IV.
        seeds: Pictures of each prompt, each of a seed of its own.
        steps: Denoising steps.
        options: Further arguments of the pipeline, such as `{"guidance_scale": 7.5, "height": 512}`.
        real: A folder of pictures, to which the Frechet distance is measured; None: to the unmerged pictures.
        features: The folder of a model of timm, whose features it is measured in; None: the shipped UNet's encoder.
        progress: Whether to show a bar.

    Returns:
        The figures, which are then in `results.json`, too; without rows while other processes are still drawing.

    Raises:
        OSError: If the folder cannot be written to. What is drawn stays, and counts when the sweep goes on.
        RuntimeError: If a session is attached to the pipeline.
        TypeError: If a call returns no picture, or an option is not a plain value.
        ValueError: If there is nothing to draw, the pipeline is compiled, the folder was begun with other settings,
            or what is drawn is not finite.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from catome_bench.models import load_shipped
        >>> pipe = load_shipped("dit")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> with TemporaryDirectory() as folder:
        ...     swept = sweep(
        ...         pipe, ["cat"], output=folder, tables=["comparison"], seeds=1, steps=2, options={"size": 32},
        ...         progress=False,
        ...     )
        >>> [row.name for row in swept.rows if row.family == "ours"]
        ['config_3', 'balanced']
    """
    options = dict(options or {})
    _check(pipe, prompts, seeds, steps, options)
    sites = find_sites(pipe)
    if not sites:
        raise ValueError(
            f"{type(pipe).__name__} has no blocks whose tokens can merge; expected a UNet or a transformer"
        )
    top = min(site.level for site in sites)
    tables_drawn, shard, store = rows_of(tables, steps, top), Shard.from_environment(), Store(output)
    network, goal = _yardstick(real, features, device_of(pipe))
    rows = {name: row for table in tables_drawn.values() for name, row in table.items()}
    calls = [motif_of(pipe, prompt) | options for prompt in prompts]
    every = Sweep(pipe, calls, all_takes(len(prompts), seeds), steps)
    left_out = every.left_out(rows)
    store.begin(
        {
            "tables": [table for table in SWEEP_TABLES if table in tables],
            "steps": steps,
            "seeds": seeds,
            "options": options,
            "model": identify(pipe),
            "versions": {name: installed_version(name) for name in DRAWN_BY},
            "sha256": digest_of(prompts),
            **_describe(tables_drawn, left_out, recipes_of(top)),
            "prompts": list(prompts),
        }
    )
    drawn = {name: row for name, row in rows.items() if name not in left_out}
    every.draw_shard(drawn, shard, store, progress)
    swept = tally(store, network, goal, partial=False, progress=progress)
    if not swept.missing:
        swept.save(output)
    return swept


def measure_sweep(
    folder: str | Path,
    *,
    real: str | Path | None = None,
    features: str | Path | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> Swept:
    """Measure what is in the folder of a sweep, also while pictures are missing, and write its `results.json` anew.

    Args:
        folder: Where `sweep` draws, or has drawn.
        real: As for `sweep`.
        features: As for `sweep`.
        device: Where the features are computed.
        progress: Whether to show a bar.

    Raises:
        OSError: If the results cannot be written.
        ValueError: If the folder is not that of a sweep, no picture has been drawn by every row, or one cannot be read.
    """
    network, goal = _yardstick(real, features, device)
    swept = tally(Store(folder), network, goal, partial=True, progress=progress)
    if swept.missing and not swept.takes:
        raise ValueError(f"no picture has been drawn by every row in {folder} yet; draw first")
    swept.save(folder)
    return swept


def _describe(
    tables: Mapping[str, Mapping[str, Variant]], left_out: Mapping[str, str], recipes: Mapping[str, MergeRecipe]
) -> dict[str, Any]:
    """The rows of every table that can be drawn, by their families, and their recipes, for JSON."""
    rows = {
        table: {name: row.family for name, row in some.items() if name not in left_out}
        for table, some in tables.items()
    }
    drawn = {name for some in rows.values() for name in some}
    known = {name: json.loads(recipe.to_json()) for name, recipe in recipes.items() if name in drawn}
    return {"rows": rows, "left_out": dict(left_out), "recipes": known}


def _yardstick(
    real: str | Path | None, features: str | Path | None, device: str | torch.device
) -> tuple[Features, Path | None]:
    """The network and the pictures of the Frechet distance, which are found before the work."""
    goal = Path(real) if real else None
    if goal:
        find_pictures(goal)
    return open_features(Path(features) if features else None, device), goal


def _check(pipe: Any, prompts: Sequence[str], seeds: int, steps: int, options: Mapping[str, Any]) -> None:
    if found := sessions(pipe):
        raise RuntimeError(f"{found[0]} is attached already; call catome_adapters.detach(pipe) before sweeping")
    if is_compiled(pipe):
        raise ValueError(
            "the pipeline is compiled, and every row would compile anew for every picture; do not compile it"
        )
    if isinstance(prompts, str) or not prompts or seeds < 1 or steps < 1:
        given = f"prompts is {prompts!r}, seeds {seeds} and steps {steps}"
        raise ValueError(f"{given}; expected a list of at least one prompt, one seed and one step")
    if taken := sorted(RESERVED & options.keys()):
        raise ValueError(f"options has {taken[0]}, which the sweep passes itself; leave it out")
    try:
        json.dumps(options)
    except TypeError as error:
        raise TypeError(f"options is {options}; expected plain values, which {SETTINGS} can hold: {error}") from error
