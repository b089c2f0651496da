"""The `catome` command and its options.

Each command imports what it runs when it runs: help, the version and most usage errors need no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from catome_bench import arguments as given
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
    arch: given.Network = "unet",
    steps: Annotated[int, typer.Option(min=2, max=1000, help="Denoising steps.")] = 50,
    images: given.Images = 8,
    size: given.Size = 128,
    recipe: given.ShownRecipe = "default",
    quick: Annotated[bool, typer.Option("--quick", help="2 pictures, 15 steps: under a minute.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for pictures, curves and results.json.")] = Path("catome-demo"),
    device: given.Device = None,
) -> None:
    """Draw pictures with a shipped model, with and without merging, and show what changed."""
    from catome_bench.commands.demo import run_demo

    if quick:
        steps, images = min(steps, 15), min(images, 2)
    run_demo(arch, recipe, steps=steps, images=images, size=size, output=output, device=device)


@app.command()
def plan(
    model: given.PlannedModel,
    height: given.Side = None,
    width: given.Side = None,
    frames: given.Frames = None,
    recipe: given.PlannedRecipe = None,
    scale: given.Scale = None,
    device: given.PlannedDevice = None,
) -> None:
    """Show where merging would pay in a network, and what it could reach; no weights are loaded, nothing is run."""
    from catome_bench.commands.plan import print_plan

    print_plan(model, height=height, width=width, frames=frames, recipe=recipe, scale=scale, device=device)


@app.command()
def compare(
    model: given.Model,
    prompt: given.Prompt = None,
    prompts: given.Prompts = None,
    seeds: given.Seeds = 4,
    steps: given.Steps = None,
    recipe: given.Recipes = None,
    gate: given.Gate = None,
    height: given.Side = None,
    width: given.Side = None,
    frames: given.Frames = None,
    output: Annotated[Path, typer.Option(help="Folder for pictures and comparison.json.")] = Path("catome-compare"),
    device: given.Device = None,
    dtype: given.Dtype = None,
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
    level: given.Levels = None,
    case: given.Cases = None,
    suite: given.Suite = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Timed rounds; by default the suite's.")] = None,
    subject: given.Subjects = None,
    steps: Annotated[list[int] | None, typer.Option(min=1, max=1000, help="Pictures: lengths of the runs.")] = None,
    images: given.Images = 4,
    size: given.BenchSize = None,
    batch: Annotated[int, typer.Option(min=1, help="Number of pictures in one call.")] = 1,
    features: given.Features = None,
    output: Annotated[Path, typer.Option(help="JSON file, written anew after every table.")] = Path("benchmark.json"),
    device: given.Device = None,
) -> None:
    """Time merging beside the unpatched network and the peers, eager and compiled."""
    from catome_bench.commands.bench import run_bench

    run_bench(
        level,
        case or (),
        suite,
        repeats=repeats,
        subjects=subject or (),
        pictures={"steps": steps, "images": images, "size": size, "batch": batch, "features": features},
        output=output,
        device=device,
    )


@app.command()
def calibrate(
    model: given.Model,
    prompt: given.Prompt = None,
    prompts: given.Prompts = None,
    seeds: given.FitSeeds = 2,
    steps: given.Steps = None,
    floor_psnr: given.FloorPsnr = None,
    speedup: given.SpeedUp = None,
    height: given.Side = None,
    width: given.Side = None,
    frames: given.Frames = None,
    output: given.RecipeFile = Path("recipe.json"),
    device: given.Device = None,
    dtype: given.Dtype = None,
) -> None:
    """Find the settings that are best for a pipeline of your own, block by block; takes hundreds of pictures."""
    from catome_bench.commands.calibrate import run_calibration
    from catome_bench.commands.compare import read_prompts

    run_calibration(
        model,
        prompts=read_prompts(prompt or (), prompts),
        seeds=seeds,
        floor_psnr=floor_psnr,
        speedup=speedup,
        sizes={"steps": steps, "height": height, "width": width, "frames": frames},
        output=output,
        device=device,
        dtype=dtype,
    )


@app.command()
def report(
    folder: given.ResultsFolder,
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
    output: given.TrainedFolder = None,
    checkpoint: Annotated[Path, typer.Option(help="Resumable state; deleted by hand.")] = Path("training.pt"),
    device: given.Device = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="Seed of weights, crops and noise.")] = 0,
) -> None:
    """Train a class-conditional pixel network; hours on 2 CPU cores, four minutes on a GPU."""
    from catome_bench.commands.train import run_training

    run_training(arch, output=output, checkpoint=checkpoint, device=device, seed=seed)
