"""The `catome` command and its options.

Each command imports what it runs when it runs: help, the version and most usage errors need no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from catome_bench.arguments import (
    Cases,
    Device,
    Dtype,
    Frames,
    Gate,
    Images,
    Levels,
    Model,
    Network,
    PlannedDevice,
    PlannedModel,
    PlannedRecipe,
    Prompt,
    Prompts,
    Recipes,
    ResultsFolder,
    Scale,
    ShownRecipe,
    Side,
    Size,
    Subjects,
    Suite,
    TrainedFolder,
)
from catome_bench.cli_sweep import sweep
from catome_bench.endings import CommandGroup
from catome_bench.measure.versions import installed_version
from catome_bench.names import Arch

app = typer.Typer(cls=CommandGroup, add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def catome(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Cached adaptive token merging, shown on a model."""
    if version:
        typer.echo(installed_version("catome") or "unknown (running from a checkout)")
        raise typer.Exit


@app.command()
def demo(
    arch: Network = "unet",
    steps: Annotated[int, typer.Option(min=2, max=1000, help="Denoising steps.")] = 50,
    images: Images = 8,
    size: Size = 128,
    recipe: ShownRecipe = "default",
    quick: Annotated[bool, typer.Option("--quick", help="2 pictures, 15 steps: under a minute.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for pictures, curves and results.json.")] = Path("catome-demo"),
    device: Device = None,
) -> None:
    """Draw pictures with a shipped model, with and without merging, and show what changed."""
    from catome_bench.commands.demo import run_demo

    if quick:
        steps, images = min(steps, 15), min(images, 2)
    run_demo(arch, recipe, steps=steps, images=images, size=size, output=output, device=device)


@app.command()
def plan(
    model: PlannedModel,
    height: Side = None,
    width: Side = None,
    frames: Frames = None,
    recipe: PlannedRecipe = None,
    scale: Scale = None,
    device: PlannedDevice = None,
) -> None:
    """Show where merging would pay in a network, and what it could reach; no weights are loaded, nothing is run."""
    from catome_bench.commands.plan import print_plan

    print_plan(model, height=height, width=width, frames=frames, recipe=recipe, scale=scale, device=device)


@app.command()
def compare(
    model: Model,
    prompt: Prompt = None,
    prompts: Prompts = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Pictures of each prompt.")] = 4,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="By default the pipeline's own.")] = None,
    recipe: Recipes = None,
    gate: Gate = None,
    height: Side = None,
    width: Side = None,
    frames: Frames = None,
    output: Annotated[Path, typer.Option(help="Folder for pictures and comparison.json.")] = Path("catome-compare"),
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Draw the same pictures with and without merging on a pipeline of your own: time, memory, fidelity, a verdict."""
    from catome_bench.commands.compare import read_gate, read_prompts, run_comparison

    passed = run_comparison(
        model,
        prompts=read_prompts(prompt or (), prompts),
        seeds=seeds,
        recipes=recipe or ("default",),
        gate=read_gate(gate or ()),
        sizes={"steps": steps, "height": height, "width": width, "frames": frames},
        output=output,
        device=device,
        dtype=dtype,
    )
    if not passed:
        raise typer.Exit(1)


app.command()(sweep)


@app.command()
def bench(
    level: Levels = None,
    case: Cases = None,
    suite: Suite = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Timed rounds; by default the suite's.")] = None,
    subject: Subjects = None,
    steps: Annotated[list[int] | None, typer.Option(min=1, max=1000, help="Pictures: lengths of the runs.")] = None,
    images: Images = 4,
    size: Size = 128,
    output: Annotated[Path, typer.Option(help="JSON file, written anew after every table.")] = Path("benchmark.json"),
    device: Device = None,
) -> None:
    """Time merging beside the unpatched network and the peers, eager and compiled."""
    from catome_bench.commands.bench import run_bench

    run_bench(
        level,
        case or (),
        suite,
        repeats=repeats,
        subjects=subject or (),
        pictures={"steps": steps or (50, 10), "images": images, "size": size},
        output=output,
        device=device,
    )


@app.command()
def calibrate(
    arch: Network = "unet",
    steps: Annotated[int, typer.Option(min=3, max=1000, help="Denoising steps.")] = 20,
    images: Images = 2,
    size: Size = 128,
    floor: Annotated[float, typer.Option(help="PSNR in dB that a scope has to keep.")] = 40.0,
    output: Annotated[Path, typer.Option(help="JSON file to write.")] = Path("catome-calibration.json"),
    device: Device = None,
) -> None:
    """Merge half of one block's tokens at a time, in one part of the run, and see what it costs in fidelity."""
    from catome_bench.commands.calibrate import run_calibration

    run_calibration(arch, steps=steps, images=images, size=size, floor=floor, output=output, device=device)


@app.command()
def report(
    folder: ResultsFolder,
    output: Annotated[Path | None, typer.Option(help="HTML file to write; by default DIR/report.html.")] = None,
) -> None:
    """Show results as one HTML page, which needs no network: pictures, merge maps, curves, tables."""
    from catome_bench.commands.report import write_page

    write_page(folder, output)


@app.command()
def vits() -> None:
    """Merge progressively in a small trained ViT on digits and in ViT-S with random weights on photographs."""
    from catome_bench.commands.vits import compare_vits

    compare_vits()


@app.command()
def train(
    arch: Annotated[Arch, typer.Option(help="Network to train.")] = "unet",
    output: TrainedFolder = None,
    checkpoint: Annotated[Path, typer.Option(help="Resumable state; deleted by hand.")] = Path("training.pt"),
    device: Device = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="Seed of weights, crops and noise.")] = 0,
) -> None:
    """Train a class-conditional pixel network; one to two hours on 2 CPU cores, minutes on a GPU."""
    from catome_bench.commands.train import run_training

    run_training(arch, output=output, checkpoint=checkpoint, device=device, seed=seed)
