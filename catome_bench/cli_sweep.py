"""The options of `catome sweep`; like all of the command line, they need no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from catome_bench.arguments import Device, Dtype, Features, Model, Prompts, Side, one_of
from catome_bench.names import CLASS_TEMPLATE, PRESET_NAMES, SWEEP_TABLES

Tables = Annotated[
    list[str] | None,
    typer.Option("--table", callback=one_of(SWEEP_TABLES), help=f"Any of: {', '.join(SWEEP_TABLES)}; by default all."),
]
Classes = Annotated[Path | None, typer.Option(help="A file with the name of a class a line, for the template.")]
Template = Annotated[str, typer.Option(help="The prompt of a class.")]
Preset = Annotated[
    str | None,
    typer.Option(callback=one_of(PRESET_NAMES), help=f"{', '.join(PRESET_NAMES)}; all but the first need --prompts."),
]
Seeds = Annotated[int, typer.Option(min=1, max=100000, help="Pictures of each prompt.")]
Steps = Annotated[int, typer.Option(min=1, max=1000, help="Denoising steps.")]
Guidance = Annotated[
    float | None, typer.Option(help="Guidance scale, 7.5 in the paper; by default the pipeline's own.")
]
Sampler = Annotated[
    Literal["plms"] | None, typer.Option(help="plms is the paper's; by default the pipeline's own scheduler.")
]
Real = Annotated[
    Path | None,
    typer.Option(help="Folder of pictures that the Frechet distance is measured to, not the unmerged ones."),
]
TablesOnly = Annotated[bool, typer.Option("--tables-only", help="Draw nothing; measure what is in --output.")]
Output = Annotated[Path, typer.Option(help="Folder for pictures and results.json; what is there is not drawn again.")]


def sweep(
    model: Model,
    table: Tables = None,
    preset: Preset = None,
    prompts: Prompts = None,
    classes: Classes = None,
    template: Template = CLASS_TEMPLATE,
    seeds: Seeds = 2,
    steps: Steps = 50,
    guidance: Guidance = None,
    height: Side = None,
    width: Side = None,
    sampler: Sampler = None,
    real: Real = None,
    features: Features = None,
    tables_only: TablesOnly = False,
    output: Output = Path("catome-sweep"),
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Draw the paper's Tables I to IV with a pipeline of your own; ended in any way, the same command goes on."""
    from catome_bench.commands.sweep import draw_sweep, print_sweep

    if tables_only:
        print_sweep(output, real=real, features=features, device=device)
        return
    draw_sweep(
        model,
        motifs={"preset": preset, "prompts": prompts, "classes": classes, "template": template},
        options={"guidance": guidance, "height": height, "width": width},
        tables=table or SWEEP_TABLES,
        seeds=seeds,
        steps=steps,
        sampler=sampler,
        real=real,
        features=features,
        output=output,
        device=device,
        dtype=dtype,
    )
