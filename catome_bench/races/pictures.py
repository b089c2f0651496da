"""Level "pipeline" of the benchmark: whole pictures of a shipped model, fidelity beside time."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from catome_adapters import MergeSession, find_sites
from catome_bench.measure.features import Features, open_features
from catome_bench.measure.frechet import frechet_distance, picture_features
from catome_bench.models.artist import CLASSES, Artist, Drawing
from catome_bench.models.pipeline import ClassPipeline, load_shipped
from catome_bench.names import Arch
from catome_bench.races.drawings import measure_drawings
from catome_bench.races.drawn import Drawn
from catome_bench.races.variants import REFERENCE, Variant, variants


class Pictures(NamedTuple):
    """What each variant draws; the arguments of `run_pictures`."""

    steps: int
    images: int
    size: int
    batch: int

    @property
    def calls(self) -> list[Sequence[int]]:
        """The seeds of every call."""
        return [range(first, min(first + self.batch, self.images)) for first in range(0, self.images, self.batch)]


def run_pictures(
    *,
    arch: Arch = "unet",
    steps: Sequence[int] = (50, 10),
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
            pictures, subjects and lengths; delete it in the end.
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
    _check(only, steps, images, batch, arch)
    describe = None if features is None else open_features(Path(features), device)
    pipeline = load_shipped(arch).to(device)
    rows: list[dict[str, Any]] = []
    for total in steps:
        every = variants(total, arch)
        chosen = {name: one for name, one in every.items() if only is None or name in (REFERENCE, *only)}
        folder = f"{size} pixels, {total} steps" + (f", batch {batch}" if batch > 1 else "")
        drawn = Drawn(None if partial is None else Path(partial, arch, folder))
        rows += _compare_variants(pipeline, chosen, Pictures(total, images, size, batch), drawn, describe)
    name = describe and describe.name
    return {"images": images, "size": size, "batch": batch, "features": name, "rows": rows}


def _check(only: Sequence[str] | None, steps: Sequence[int], images: int, batch: int, arch: Arch) -> None:
    for name, number in {"images": images, "batch": batch}.items():
        if number < 1:
            raise ValueError(f"{name} is {number}; expected at least 1")
    known = {name: None for total in steps for name in variants(total, arch)}
    unknown = [name for name in only or () if name not in known]
    if unknown:
        raise ValueError(f"subject is {unknown[0]!r}; expected one of {list(known)}")


def _compare_variants(
    pipeline: ClassPipeline,
    chosen: Mapping[str, Variant],
    pictures: Pictures,
    drawn: Drawn,
    describe: Features | None,
) -> list[dict[str, Any]]:
    # An error of the reference is one of all.
    _draw_two_steps(pipeline, chosen[REFERENCE], pictures)
    notes = {name: _warm_up(pipeline, variant, pictures) for name, variant in chosen.items()}
    able = {name: variant for name, variant in chosen.items() if not notes[name]}
    drawings = _draw_all(pipeline, able, pictures, drawn)
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
        _draw_two_steps(pipeline, variant, pictures)
    except Exception as error:
        return str(error) or type(error).__name__
    return ""


def _draw_two_steps(pipeline: ClassPipeline, variant: Variant, pictures: Pictures) -> None:
    _draw(pipeline, variant, "warm up", pictures._replace(steps=2), pictures.calls[0])


def _draw_all(
    pipeline: ClassPipeline, able: Mapping[str, Variant], pictures: Pictures, drawn: Drawn
) -> dict[str, list[Drawing]]:
    drawings: dict[str, list[Drawing]] = defaultdict(list)
    with tqdm(total=pictures.images * len(able), desc=f"{pictures.steps} steps", unit="picture") as bar:
        for seeds, (name, variant) in product(pictures.calls, able.items()):
            draw = functools.partial(_draw, pipeline, variant, name, pictures, seeds)
            drawings[name] += drawn.of([name, "-".join(map(str, seeds))], draw)
            bar.update(len(seeds))
    return drawings


def _draw(
    pipeline: ClassPipeline, variant: Variant, label: str, pictures: Pictures, seeds: Sequence[int]
) -> list[Drawing]:
    artist = Artist(pipeline, variant.steps(pictures.steps), pictures.size)
    motifs = [CLASSES[seed % len(CLASSES)] for seed in seeds]
    # Found before the variant is applied, because peers replace the class of a block.
    projections = [site.attention.get_submodule("to_k") for site in find_sites(pipeline) if site.level == 1]
    with variant.apply(pipeline) as session, _counted_keys(projections) as keys, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds[0])  # tomesd and ca-tome draw their destinations from the global generator
        drawings = artist.draw_batch(motifs, seeds, label)
        if isinstance(session, MergeSession):
            removed = mean(_removed_at_top(session))
        else:
            removed = 1 - mean(keys) / (pictures.size // pipeline.token_pixels) ** 2
    return [drawing._replace(removed=removed) for drawing in drawings]


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
