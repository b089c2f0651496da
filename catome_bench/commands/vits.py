"""`catome vits`: progressive merging in ViTs against the published method."""

from __future__ import annotations

import torch
import typer

from catome_bench.races.vits import load_digits, load_photographs, race_vit, train_vit
from catome_bench.views.tables import render_vits


def vits() -> None:
    """Merge progressively in a small trained ViT on digits and in ViT-S with random weights on photographs."""
    import timm

    train, test = load_digits()
    small = train_vit(train)
    torch.manual_seed(0)
    large = timm.create_model("vit_small_patch16_224").eval()
    with torch.no_grad():
        for title, model, data in (("digits", small, test), ("photographs", large, load_photographs(large))):
            rows = [row.to_dict() for row in race_vit(model, data)]
            typer.echo(f"{title}\n{render_vits(rows)}")
