"""The `catome` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from catome_adapters import RECIPES
from catome_bench.bench import bench
from catome_bench.calibrate import calibrate
from catome_bench.demo import run_demo
from catome_bench.pipeline import Arch
from catome_bench.plan import plan
from catome_bench.train import train

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Cached adaptive token merging, shown on a model.")
app.command()(train)
app.command()(bench)
app.command()(calibrate)
app.command()(plan)


@app.command()
def demo(
    arch: Annotated[Arch, typer.Option(help="Shipped network that draws.")] = "unet",
    steps: Annotated[int, typer.Option(min=2, help="Denoising steps.")] = 50,
    images: Annotated[int, typer.Option(min=1, help="Pictures to draw with each of the two.")] = 8,
    size: Annotated[
        int,
        typer.Option(min=16, help="Pixels along each side; at 128 the UNet has 4,096 top-level tokens, the DiT 1,024."),
    ] = 128,
    recipe: Annotated[str, typer.Option(help=f"One of: {', '.join(RECIPES)}.")] = "default",
    quick: Annotated[bool, typer.Option("--quick", help="2 pictures, 15 steps: under a minute.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for pictures, curves and results.json.")] = Path("catome-demo"),
    device: Annotated[str, typer.Option(help="Torch device.")] = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Draw pictures with a shipped model, with and without merging, and show what changed."""
    if recipe not in RECIPES:
        raise typer.BadParameter(f"{recipe!r}; expected one of {sorted(RECIPES)}", param_hint="--recipe")
    if quick:
        steps, images = min(steps, 15), min(images, 2)
    run_demo(arch, RECIPES[recipe], recipe, steps=steps, images=images, size=size, output=output, device=device)
