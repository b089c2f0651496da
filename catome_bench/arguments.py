"""Options that several commands have, and checks of what is given for them; none needs torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from catome_bench.names import CASE_NAMES, LEVELS, RECIPE_NAMES, SUITE_NAMES, Arch


def one_of(names: Sequence[str]) -> Callable[[str | list[str] | None], str | list[str] | None]:
    """A check that an option has these values only."""

    def check(given: str | list[str] | None) -> str | list[str] | None:
        for value in [given] if isinstance(given, str) else given or ():
            if value not in names:
                raise typer.BadParameter(f"{value!r}; expected one of {', '.join(names)}")
        return given

    return check


def drawable(size: int | None) -> int | None:
    """A check that the shipped models can draw pictures of this size."""
    if size is not None and size % 8:
        raise typer.BadParameter(f"{size}; expected a multiple of 8, such as {max(16, size // 8 * 8)}")
    return size


def known_recipe(given: str | list[str] | None) -> str | list[str] | None:
    """A check that these are names of recipes, or files."""
    for name in [given] if isinstance(given, str) else given or ():
        if name not in RECIPE_NAMES and not Path(name).is_file():
            raise typer.BadParameter(f"{name!r}; expected one of {', '.join(RECIPE_NAMES)}, or a JSON file")
    return given


RECIPE_HELP = f"One of {', '.join(RECIPE_NAMES)}, or a file that MergeRecipe.to_json wrote"
Model = Annotated[str, typer.Argument(help="'unet', 'dit', the folder of a saved pipeline, or an id on the hub.")]
PlannedModel = Annotated[
    str,
    typer.Argument(
        help="'unet', 'dit', the folder of a pipeline or network of diffusers or a ViT of transformers, the name of a "
        "timm model, or an id on the hub."
    ),
]
PlannedRecipe = Annotated[
    str | None,
    typer.Option(callback=known_recipe, help=f"{RECIPE_HELP}; by default 'default', for ViTs 'vit'."),
]
PlannedDevice = Annotated[
    Literal["cpu", "cuda"] | None, typer.Option(help="Predict for it; by default a GPU if there is one.")
]
ShownRecipe = Annotated[str, typer.Option(callback=known_recipe, help=f"{RECIPE_HELP}.")]
Network = Annotated[Arch, typer.Option(help="Shipped network that draws.")]
Images = Annotated[int, typer.Option(min=1, max=100, help="Pictures to draw in each way.")]
Device = Annotated[str | None, typer.Option(help="Torch device; by default a GPU if there is one.")]
PICTURE_SIDE = typer.Option(
    min=16,
    max=1024,
    callback=drawable,
    help="Pixels along each side, a multiple of 8; at 128 the UNet has 4,096 top-level tokens, the DiT 1,024.",
)
Size = Annotated[int, PICTURE_SIDE]
BenchSize = Annotated[int | None, PICTURE_SIDE]
Frames = Annotated[int | None, typer.Option(min=1, max=10000, help="Frames of a video.")]
Side = Annotated[int | None, typer.Option(min=1, max=16384, help="Pixels; by default the model's own size.")]
Scale = Annotated[
    int | None,
    typer.Option(min=1, max=1024, help="Pixels to a pixel of the network's input; by default the VAE's, or 8."),
]
Recipes = Annotated[list[str] | None, typer.Option("--recipe", callback=known_recipe, help=f"{RECIPE_HELP}.")]
Prompt = Annotated[
    list[str] | None, typer.Option(help="What to draw, any number; for 'unet' and 'dit' a class, such as cat.")
]
Prompts = Annotated[Path | None, typer.Option(help="A file with a prompt a line.")]
Gate = Annotated[
    list[str] | None, typer.Option(help="psnr=30 or ssim=0.92: if a recipe's median is below, the exit code is 1.")
]
Dtype = Annotated[
    Literal["float32", "float16", "bfloat16"] | None,
    typer.Option(help="Of the weights; by default float32, on a GPU bfloat16."),
]
Levels = Annotated[list[str] | None, typer.Option(callback=one_of(LEVELS), help=f"Any of: {', '.join(LEVELS)}.")]
Cases = Annotated[list[str] | None, typer.Option(callback=one_of(CASE_NAMES), help=f"Any of: {', '.join(CASE_NAMES)}.")]
Suite = Annotated[
    str | None,
    typer.Option(callback=one_of(SUITE_NAMES), help="cpu or gpu: what to measure, and how; by default the machine's."),
]
Subjects = Annotated[
    list[str] | None,
    typer.Option(help="Only these contenders of a block, a network or a picture, beside the unpatched."),
]
ResultsFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder that catome demo, compare, bench or sweep wrote results to.")
]
Seeds = Annotated[int, typer.Option(min=1, max=1000, help="Pictures of each prompt.")]
FitSeeds = Annotated[
    int, typer.Option(min=1, max=1000, help="Pictures of each prompt to choose by; as many others to compare.")
]
Steps = Annotated[int | None, typer.Option(min=1, max=1000, help="By default the pipeline's own.")]
FloorPsnr = Annotated[
    float | None, typer.Option(help="Be as fast as possible at this PSNR in dB; 40, unless --speedup is given.")
]
SpeedUp = Annotated[float | None, typer.Option(help="Be as close as possible at this speed-up, such as 1.3.")]
RecipeFile = Annotated[Path, typer.Option(help="File of the recipe; all figures are beside it.")]
TrainedFolder = Annotated[Path | None, typer.Option(help="Folder of the finished pipeline; by default the shipped.")]
Features = Annotated[
    Path | None,
    typer.Option(help="Folder of a timm model whose features pictures are compared in, such as Inception or DINOv2."),
]
