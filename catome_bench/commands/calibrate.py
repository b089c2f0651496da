"""`catome calibrate`: the settings that are best for a model of one's own, as a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import typer

from catome_bench.calibrate import calibrate
from catome_bench.calibration.result import figures_file
from catome_bench.commands.compare import open_calls
from catome_bench.files import check_file


def run_calibration(
    model: str,
    *,
    prompts: Sequence[str],
    seeds: int,
    floor_psnr: float | None,
    speedup: float | None,
    sizes: Mapping[str, int | None],
    output: Path,
    device: str | None,
    dtype: str | None,
) -> None:
    """Measure, choose, print a table, and write the recipe to `output`.

    What is measured lies beside it: a run that was broken off goes on with it, and another goal begins with it.

    Args:
        model: As `open_pipeline` takes it.
        prompts: Or names of classes, for models that draw these.
        seeds: How many pictures to fit to of each prompt, and to compare.
        floor_psnr: In dB.
        speedup: Instead.
        sizes: Of `OPTIONS`; None: the pipeline's own.
        output: File of the recipe.
        device: Torch device.
        dtype: Of the weights.

    Raises:
        typer.BadParameter: If the model cannot be opened, does not take a prompt or an option, or draws nothing that
            can be compared; if nothing saves time, the goals contradict, or `output` could not be written.
    """
    measurements = output.with_name(f"{output.stem}-measurements.jsonl")
    try:
        pipe, calls = open_calls(model, prompts, sizes, device, dtype)
        for file in (output, figures_file(output), measurements):
            check_file(file, "--output")
        pipe.set_progress_bar_config(disable=True)
        calibration = calibrate(
            pipe, calls, floor_psnr=floor_psnr, speedup=speedup, seeds=range(seeds), measurements=measurements
        )
    except (ValueError, torch.OutOfMemoryError) as error:
        raise typer.BadParameter(str(error)) from error
    # First: whatever becomes of the files, the figures are there.
    typer.echo(calibration)
    figures = calibration.save(output)
    typer.echo(
        f"written: {output}, the recipe; {figures}, all figures; {measurements}, with which another goal takes minutes"
    )
