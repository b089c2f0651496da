"""Level "pipeline" of the benchmark: whole pictures of a shipped model, fidelity beside time."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from catome_adapters import MergeSession, find_sites
from catome_bench.measure.fidelity import psnr, ssim
from catome_bench.measure.frechet import frechet_distance, picture_features
from catome_bench.measure.spread import Spread
from catome_bench.models.artist import CLASSES, Artist, Drawing
from catome_bench.models.pipeline import ClassPipeline, load_shipped
from catome_bench.names import Arch
from catome_bench.races.drawn import Drawn
from catome_bench.races.variants import REFERENCE, Variant, variants


def run_pictures(
    *,
    arch: Arch = "unet",
    steps: Sequence[int] = (50, 10),
    images: int = 4,
    size: int = 128,
    only: Sequence[str] | None = None,
    device: str = "cpu",
    partial: str | Path | None = None,
) -> dict[str, Any]:
    """Draw the same pictures with every variant, one picture after the other, and compare them with the unmerged.

    Args:
        arch: Shipped network that draws.
        steps: Lengths of the unmerged run; each is a comparison of its own.
        images: Pictures, each of a class and seed of its own.
        size: Pixels along each side; at 128 the UNet has 4,096 top-level tokens, the DiT 1,024.
        only: Names of variants; None means all. The unmerged run is always among them.
        device: Torch device.
        partial: A folder that keeps what is drawn, and from which the same call goes on, also with more or fewer
            pictures, subjects and lengths; delete it in the end.

    Returns:
        `{"images", "size", "rows"}`, for JSON. A row has `steps`, `subject` (the variant), `family`, `seconds`
        (median), and each as a `Spread` over the pictures: `speedup`, `psnr` in dB (None: the same picture) and
        `ssim`; `frechet` and `removed` (the share of the keys that merging removed from top-level self-attention;
        padding does not count as removed). The row of a variant that cannot run has a `note` instead.

    Raises:
        ValueError: If a variant is unknown, there is nothing to draw, or `partial` holds something else.
        OSError: If `partial` cannot be read or written.
    """
    _check(only, steps, images, arch)
    pipeline = load_shipped(arch).to(device)
    rows: list[dict[str, Any]] = []
    for total in steps:
        every = variants(total, arch)
        chosen = {name: one for name, one in every.items() if only is None or name in (REFERENCE, *only)}
        drawn = Drawn(None if partial is None else Path(partial, arch, f"{size} pixels, {total} steps"))
        rows += _compare_variants(pipeline, chosen, total, images, size, drawn)
    return {"images": images, "size": size, "rows": rows}


def measure_drawings(drawings: Sequence[Drawing], references: Sequence[Drawing]) -> dict[str, Any]:
    """Time and fidelity of the drawings of one variant, against the reference's of the same classes and seeds."""
    pairs = list(zip(drawings, references, strict=True))
    return {
        "seconds": median(drawing.seconds for drawing in drawings),
        "speedup": Spread.of([base.seconds / drawing.seconds for drawing, base in pairs]).to_dict(),
        "psnr": Spread.of([psnr(drawing.picture, base.picture) for drawing, base in pairs]).to_dict(),
        "ssim": Spread.of([ssim(drawing.picture, base.picture) for drawing, base in pairs]).to_dict(),
        "removed": mean(drawing.removed for drawing in drawings),
    }


def _check(only: Sequence[str] | None, steps: Sequence[int], images: int, arch: Arch) -> None:
    if images < 1:
        raise ValueError(f"images is {images}; expected at least 1")
    known = {name: None for total in steps for name in variants(total, arch)}
    unknown = [name for name in only or () if name not in known]
    if unknown:
        raise ValueError(f"subject is {unknown[0]!r}; expected one of {list(known)}")


def _compare_variants(
    pipeline: ClassPipeline, chosen: Mapping[str, Variant], total: int, images: int, size: int, drawn: Drawn
) -> list[dict[str, Any]]:
    _draw(pipeline, chosen[REFERENCE], "warm up", CLASSES[0], seed=0, total=2, size=size)
    notes = {name: _warm_up(pipeline, variant, size) for name, variant in chosen.items()}
    able = {name: variant for name, variant in chosen.items() if not notes[name]}
    drawings = _draw_all(pipeline, able, total, images, size, drawn)
    encoder = load_shipped("unet").to(pipeline.device)
    features = {name: _features(encoder, drawings[name]) for name in able}
    rows = []
    for name, variant in chosen.items():
        row: dict[str, Any] = {"steps": total, "subject": name, "family": variant.family}
        if name in able:
            row |= measure_drawings(drawings[name], drawings[REFERENCE])
            row["frechet"] = frechet_distance(features[name], features[REFERENCE])
        rows.append(row if name in able else row | {"note": notes[name]})
    return rows


def _warm_up(pipeline: ClassPipeline, variant: Variant, size: int) -> str:
    """Two untimed steps; returns the reason if the variant cannot run, so that the others keep their rows."""
    try:
        _draw(pipeline, variant, "warm up", CLASSES[0], seed=0, total=2, size=size)
    except Exception as error:
        return str(error) or type(error).__name__
    return ""


def _draw_all(
    pipeline: ClassPipeline, able: Mapping[str, Variant], total: int, images: int, size: int, drawn: Drawn
) -> dict[str, list[Drawing]]:
    drawings: dict[str, list[Drawing]] = defaultdict(list)
    with tqdm(total=images * len(able), desc=f"{total} steps", unit="picture") as bar:
        for seed, motif in enumerate(islice(cycle(CLASSES), images)):
            for name, variant in able.items():
                draw = functools.partial(_draw, pipeline, variant, name, motif, seed, total, size)
                drawings[name].append(drawn.of([name, f"{seed}"], draw))
                bar.update()
    return drawings


def _draw(
    pipeline: ClassPipeline, variant: Variant, label: str, motif: str, seed: int, total: int, size: int
) -> Drawing:
    artist = Artist(pipeline, variant.steps(total), size)
    # Found before the variant is applied, because peers replace the class of a block.
    projections = [site.attention.get_submodule("to_k") for site in find_sites(pipeline) if site.level == 1]
    with variant.apply(pipeline) as session, _counted_keys(projections) as keys, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # tomesd and ca-tome draw their destinations from the global generator
        drawing = artist.draw(motif, seed, label)
        if isinstance(session, MergeSession):
            return drawing._replace(removed=mean(_removed_at_top(session)))
    return drawing._replace(removed=1 - mean(keys) / (size // pipeline.token_pixels) ** 2)


def _removed_at_top(session: MergeSession) -> list[float]:
    rows = session.summary().rows
    most = max(row.tokens for row in rows)
    return [row.merged_fraction for row in rows if row.tokens == most]


@contextmanager
def _counted_keys(projections: Sequence[nn.Module]) -> Iterator[list[int]]:
    """The number of tokens that the keys of self-attention are computed from, call by call, for peers."""
    keys: list[int] = []
    handles = [one.register_forward_pre_hook(lambda _, args: keys.append(args[0].shape[1])) for one in projections]
    try:
        yield keys
    finally:
        for handle in handles:
            handle.remove()


def _features(encoder: ClassPipeline, drawings: Sequence[Drawing]) -> Tensor:
    return torch.cat([picture_features(encoder, drawing.picture[None]).cpu() for drawing in drawings])
