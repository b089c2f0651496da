"""`catome compare`: what recipes gain and lose on a pipeline of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import typer

from catome_bench.commands.options import choose_device, find_recipe, read_lines
from catome_bench.compare import compare
from catome_bench.comparison.arguments import arguments_for
from catome_bench.comparison.compared import check_gate
from catome_bench.files import check_folder
from catome_bench.open import open_pipeline


def run_comparison(
    model: str,
    *,
    prompts: Sequence[str],
    seeds: int,
    recipes: Sequence[str],
    gate: Mapping[str, float],
    sizes: Mapping[str, int | None],
    output: Path,
    device: str | None,
    dtype: str | None,
) -> bool:
    """Draw, print a table, and write pictures and `comparison.json` to `output`; returns whether the gate is passed.

    Args:
        model: As `open_pipeline` takes it.
        prompts: Or names of classes, for models that draw these.
        seeds: How many pictures to draw of each prompt.
        recipes: Names and files.
        gate: Floors for the medians of "psnr" and "ssim".
        sizes: By the names of `comparison.arguments.OPTIONS`; None: the pipeline's own.
        output: Folder.
        device: Torch device.
        dtype: Of the weights.

    Raises:
        typer.BadParameter: If the model cannot be opened, does not take a prompt or an option, or draws nothing that
            can be compared; if a recipe does not fit it, or `output` could not be written.
    """
    chosen = {name: find_recipe(name) for name in recipes}
    try:
        pipe, calls = open_calls(model, prompts, sizes, device, dtype)
        check_folder(output, "--output")
        pipe.set_progress_bar_config(leave=False)
        compared = compare(pipe, chosen, calls, seeds=range(seeds), gate=gate)
    except (ValueError, torch.OutOfMemoryError) as error:
        raise typer.BadParameter(str(error)) from error
    # First: whatever becomes of the files, the figures are there.
    typer.echo(compared)
    compared.save(output)
    typer.echo(f"written to {output}: comparison.json, side-by-side.png, pictures")
    return compared.passes()


def open_calls(
    model: str, prompts: Sequence[str], sizes: Mapping[str, int | None], device: str | None, dtype: str | None
) -> tuple[Any, list[dict[str, Any]]]:
    """A pipeline, by default a GPU's in bfloat16, and the arguments with which it draws the prompts.

    Raises:
        typer.BadParameter: If nothing can be computed on the device.
        ValueError: If the model cannot be opened, or does not take a prompt or an option.
    """
    device = choose_device(device)
    default = "float32" if torch.device(device).type == "cpu" else "bfloat16"
    pipe = open_pipeline(model, device, getattr(torch, dtype or default))
    return pipe, [arguments_for(pipe, prompt, sizes) for prompt in prompts]


def read_prompts(given: Sequence[str], file: Path | None) -> list[str]:
    """The prompts of the command line, and those of a file, one in a line.

    Raises:
        typer.BadParameter: If the file cannot be read, or there is no prompt.
    """
    prompts = [*given, *(read_lines(file, "--prompts") if file else ())]
    if not prompts:
        where = f"{file} has no line with one" if file else "none is given"
        raise typer.BadParameter(
            f'{where}; pass --prompt "a cat", or a file with a prompt a line', param_hint="--prompt"
        )
    return prompts


def read_gate(given: Sequence[str]) -> dict[str, float]:
    """The floors of options such as "psnr=30".

    Raises:
        typer.BadParameter: If one has another name, or is no number.
    """
    try:
        return check_gate({name: float(floor) for name, _, floor in (one.partition("=") for one in given)})
    except ValueError as error:
        message = f"{', '.join(given)}: {error}; expected numbers, as in psnr=30 or ssim=0.92"
        raise typer.BadParameter(message, param_hint="--gate") from error
