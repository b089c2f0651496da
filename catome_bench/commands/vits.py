"""`catome vits`: progressive merging in ViTs against the published method."""

from __future__ import annotations

from typing import Any

import torch
import typer

from catome_bench.races.vits import Labeled, load_digits, load_photographs, race_vit, train_vit
from catome_bench.views.tables import render_vits


def compare_vits() -> None:
    """Print a table for each of the two."""
    import timm

    # Every title comes before the work on it, so that a full disk behind stdout is found at once.
    typer.echo("digits")
    train, test = load_digits()
    _print_race(train_vit(train), test)
    typer.echo("photographs")
    torch.manual_seed(0)
    large = timm.create_model("vit_small_patch16_224").eval()
    _print_race(large, load_photographs(large))


@torch.no_grad()
def _print_race(model: Any, data: Labeled) -> None:
    typer.echo(render_vits([row.to_dict() for row in race_vit(model, data)]))
