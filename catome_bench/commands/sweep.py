"""`catome sweep`: the paper's tables for a pipeline of one's own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import typer
from diffusers.schedulers.scheduling_pndm import PNDMScheduler

from catome_bench.commands.options import choose_device, default_device, read_lines
from catome_bench.comparison.arguments import settings_of
from catome_bench.files import check_folder
from catome_bench.names import IMAGENET_2K
from catome_bench.open import open_pipeline
from catome_bench.sweep import Swept, measure_sweep, sweep
from catome_bench.sweeping.prompts import check_preset, fill, imagenet_classes


def draw_sweep(
    model: str,
    *,
    motifs: Mapping[str, Any],
    options: Mapping[str, float | None],
    tables: Sequence[str],
    seeds: int,
    steps: int,
    sampler: str | None,
    real: Path | None,
    features: Path | None,
    output: Path,
    device: str | None,
    dtype: str | None,
) -> None:
    """Draw what is missing in `output`, and, once nothing is, write `results.json` and print the tables.

    Args:
        model: As `open_pipeline` takes it.
        motifs: As `choose_prompts` takes them.
        options: By the names of `comparison.arguments.OPTIONS`; None: the pipeline's own.
        tables: As `sweep` takes them.
        seeds: Pictures of each prompt.
        steps: Denoising steps.
        sampler: "plms", or None for the pipeline's own scheduler.
        real: Folder of pictures.
        features: Folder of a timm model.
        output: Folder.
        device: Torch device.
        dtype: Of the weights.

    Raises:
        typer.BadParameter: If the model cannot be opened, there is no prompt, `output` was begun with other settings
            or cannot be written, or what is drawn is not finite.
    """
    device = own_device(device)
    check_folder(output, "--output")
    default = "float32" if torch.device(device).type == "cpu" else "bfloat16"
    with one_sentence():
        pipe = open_pipeline(model, device, getattr(torch, dtype or default))
        if sampler:
            pipe.scheduler = to_plms(pipe.scheduler)
        pipe.set_progress_bar_config(disable=True)
        swept = sweep(
            pipe,
            choose_prompts(pipe, **motifs),
            output=output,
            tables=tables,
            seeds=seeds,
            steps=steps,
            options=settings_of(pipe, options),
            real=real,
            features=features,
        )
    _print(swept, output)


def print_sweep(output: Path, *, real: Path | None, features: Path | None, device: str | None) -> None:
    """Measure what is in `output`, write `results.json` and print the tables.

    Raises:
        typer.BadParameter: If there is nothing to measure.
    """
    with one_sentence():
        swept = measure_sweep(output, real=real, features=features, device=own_device(device))
    _print(swept, output)


def choose_prompts(
    pipe: Any, *, preset: str | None, prompts: Path | None, classes: Path | None, template: str
) -> list[str]:
    """What to draw: the prompts of a file, or a prompt for each class of a file, of a preset, or of a shipped model.

    Raises:
        typer.BadParameter: If a file cannot be read.
        ValueError: If none is given, or several; if these are not the prompts of the preset.
    """
    if (prompts and classes) or (classes and preset) or (prompts and preset == IMAGENET_2K):
        raise ValueError("--prompts, --classes and --preset imagenet-2k all say what to draw; pass one of them")
    if prompts:
        chosen = read_lines(prompts, "--prompts")
    elif classes or preset == IMAGENET_2K:
        chosen = _of_classes(pipe, template, read_lines(classes, "--classes") if classes else imagenet_classes())
    else:
        chosen = _own_classes(pipe, preset)
    if not chosen:
        raise ValueError(f"{prompts or classes} has no line; pass a file with a prompt or a class a line")
    if preset:
        check_preset(preset, chosen)
    return chosen


def to_plms(scheduler: Any) -> Any:
    """The paper's sampler, with the noise of this scheduler.

    Raises:
        ValueError: If its noise is of another kind.
    """
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(f"{type(scheduler).__name__} has no noise schedule that PLMS knows: leave --sampler out")
    return PNDMScheduler.from_config(scheduler.config, skip_prk_steps=True)


def own_device(name: str | None) -> str:
    """As `choose_device`; of several GPUs, each process that `torchrun` starts has its own.

    Raises:
        typer.BadParameter: If nothing can be computed there.
    """
    local = os.environ.get("LOCAL_RANK")
    return choose_device(f"cuda:{local}" if local and (name or default_device()) == "cuda" else name)


@contextmanager
def one_sentence() -> Iterator[None]:
    """What the user can do something about ends the command in one sentence.

    Raises:
        typer.BadParameter: Instead of errors of input and output.
    """
    try:
        yield
    except (ValueError, torch.OutOfMemoryError) as error:
        raise typer.BadParameter(str(error)) from error
    except OSError as error:
        if error.strerror is None:
            raise
        message = f"{error.filename or 'a file'}: {error.strerror}; what is drawn stays: make room, and start it again"
        raise typer.BadParameter(message, param_hint="--output") from error


def _print(swept: Swept, output: Path) -> None:
    written = f"\nwritten to {output}: results.json" if swept.rows or not swept.missing else ""
    typer.echo(f"{swept}{written}")


def _own_classes(pipe: Any, preset: str | None) -> list[str]:
    names = getattr(pipe, "config", {}).get("class_names")
    if preset or not names:
        wanted = (
            f"--prompts FILE with the prompts of {preset}" if preset else "--preset imagenet-2k, --classes or --prompts"
        )
        raise ValueError(f"nothing says what to draw; pass {wanted}")
    return list(names)


def _of_classes(pipe: Any, template: str, names: list[str]) -> list[str]:
    """The shipped models take the names as they are."""
    return names if "class_names" in getattr(pipe, "config", {}) else fill(template, names)
