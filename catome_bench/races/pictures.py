"""Level "pipeline" of the benchmark: whole pictures of a shipped model, fidelity beside time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from catome_bench.measure.environment import describe_environment
from catome_bench.measure.features import Features, open_features
from catome_bench.measure.frechet import frechet_distance, picture_features
from catome_bench.models.artist import Drawing
from catome_bench.models.pipeline import ClassPipeline, load_shipped
from catome_bench.names import Arch
from catome_bench.races.draw_in_turn import Pictures, draw_in_turn, draw_two_steps
from catome_bench.races.drawings import measure_drawings
from catome_bench.races.kept import KeptDrawings
from catome_bench.races.variants import REFERENCE, Variant, variants

STEPS = (50, 10)


def run_pictures(
    *,
    arch: Arch = "unet",
    steps: Sequence[int] = STEPS,
    images: int = 4,
    size: int = 128,
    batch: int = 1,
    only: Sequence[str] | None = None,
    device: str = "cpu",
    partial: str | Path | None = None,
    features: str | Path | None = None,
) -> dict[str, Any]:
    """Draw the same pictures with every variant, one call after the other, and compare them with the unmerged.

    Args:
        arch: Shipped network that draws.
        steps: Lengths of the unmerged run; each is a comparison of its own.
        images: Pictures, each of a class and seed of its own.
        size: Pixels along each side; at 128 the UNet has 4,096 top-level tokens, the DiT 1,024.
        batch: Pictures of a call, whose time they share; the last call has those that are left.
        only: Names of variants; None means all. The unmerged run is always among them.
        device: Torch device.
        partial: A folder that keeps what is drawn, and from which the same call goes on, also with more or fewer
            pictures, subjects and lengths, on the same machine; delete it in the end.
        features: The folder of a model of timm, such as a DINOv2; its features say how far pictures are apart, too.

    Returns:
        `{"images", "size", "batch", "features", "rows"}`, for JSON. A row has `steps`, `subject` (the variant),
        `family`, `seconds` (median), and each as a `Spread` over the pictures: `speedup`, `psnr` in dB (None: the same
        picture), `ssim`, and with features `distance` (1 minus their cosine); `undisturbed` (the speed-up if every step
        takes as long as in the picture where it was fastest), `frechet`, and `removed` (the share of the keys that
        merging removed from top-level self-attention; padding does not count as removed). The row of a variant that
        cannot run has a `note` instead.

    Raises:
        ValueError: If a variant is unknown, there is nothing to draw, `partial` holds something else, or there are no
            weights in `features`.
        OSError: If `partial` cannot be read or written.
    """
    for name, number in {"images": images, "batch": batch}.items():
        if number < 1:
            raise ValueError(f"{name} is {number}; expected at least 1")
    check_subjects(arch, only or (), steps)
    describe = None if features is None else open_features(Path(features), device)
    pipeline = load_shipped(arch).to(device)
    rows: list[dict[str, Any]] = []
    for total in steps:
        every = variants(total, arch)
        chosen = {name: one for name, one in every.items() if only is None or name in (REFERENCE, *only)}
        folder = f"{size} pixels, {total} steps" + (f", batch {batch}" if batch > 1 else "")
        kept = KeptDrawings(None if partial is None else Path(partial, arch, folder), describe_environment(device))
        rows += _compare_variants(pipeline, chosen, Pictures(total, images, size, batch), kept, describe)
    name = describe and describe.name
    return {"images": images, "size": size, "batch": batch, "features": name, "rows": rows}


def check_subjects(arch: Arch, subjects: Sequence[str], steps: Sequence[int]) -> None:
    """Find out whether there are variants of these names.

    Raises:
        ValueError: If there is none.
    """
    known = {name: None for total in steps for name in variants(total, arch)}
    unknown = [name for name in subjects if name not in known]
    if unknown:
        raise ValueError(f"subject is {unknown[0]!r}; expected one of {list(known)}")


def _compare_variants(
    pipeline: ClassPipeline,
    chosen: Mapping[str, Variant],
    pictures: Pictures,
    kept: KeptDrawings,
    describe: Features | None,
) -> list[dict[str, Any]]:
    # An error of the reference is one of all.
    draw_two_steps(pipeline, chosen[REFERENCE], pictures)
    notes = {name: _warm_up(pipeline, variant, pictures) for name, variant in chosen.items()}
    able = {name: variant for name, variant in chosen.items() if not notes[name]}
    drawings = draw_in_turn(pipeline, able, pictures, kept)
    for name in [name for name in able if not _are_finite(drawings[name])]:
        notes[name] = "draws values that are not finite"
        del able[name]
    if REFERENCE not in able:
        raise ValueError(f"the unmerged network {notes[REFERENCE]}; draw on another device")
    encoder = load_shipped("unet").to(pipeline.device)
    features = {name: _features(encoder, drawings[name]) for name in able}
    rows = []
    for name, variant in chosen.items():
        row: dict[str, Any] = {"steps": pictures.steps, "subject": name, "family": variant.family}
        if name in able:
            row |= measure_drawings(drawings[name], drawings[REFERENCE], describe)
            row["frechet"] = frechet_distance(features[name], features[REFERENCE])
        rows.append(row if name in able else row | {"note": notes[name]})
    return rows


def _warm_up(pipeline: ClassPipeline, variant: Variant, pictures: Pictures) -> str:
    """Two untimed steps; returns the reason if the variant cannot run, so that the others keep their rows."""
    try:
        draw_two_steps(pipeline, variant, pictures)
    except Exception as error:
        return str(error) or type(error).__name__
    return ""


def _features(encoder: ClassPipeline, drawings: Sequence[Drawing]) -> Tensor:
    return torch.cat([picture_features(encoder, drawing.picture[None]).cpu() for drawing in drawings])


def _are_finite(drawings: Sequence[Drawing]) -> bool:
    return all(drawing.picture.isfinite().all() for drawing in drawings)
