"""Level "pipeline" of the benchmark: whole pictures of a shipped model, fidelity beside time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from statistics import mean, median
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from tqdm import tqdm

from catome_adapters import RECIPES, MergeRecipe, attach, find_sites
from catome_bench.demo import CLASSES, Artist
from catome_bench.frechet import frechet_distance, picture_features
from catome_bench.peers import PEERS
from catome_bench.pipeline import Arch, ClassPipeline, load_shipped
from catome_core import AdaptiveMerge

REFERENCE = "unmerged"
FEWER = (0.9, 0.8, 0.7, 0.6, 0.5)


class Subject(NamedTuple):
    """A way to draw the same pictures in less time.

    Attributes:
        family: "unmerged", "ours", "peer" or "fewer steps".
        apply: Changes a pipeline for as long as its context lasts.
        share: Of the steps that are run.
    """

    family: str
    apply: Callable[[Any], AbstractContextManager[Any]] = nullcontext
    share: float = 1.0

    def steps(self, total: int) -> int:
        """The steps it takes where the reference takes `total`."""
        return max(1, round(self.share * total))


class Draft(NamedTuple):
    """One picture (3, size, size) on the host, its seconds, and the share of its keys that attention was spared."""

    picture: Tensor
    seconds: float
    removed: float


def fixed(removed: float, radius: int | None = None, **changes: Any) -> MergeRecipe:
    """The recipe that always removes this share of the top level's tokens, with the default's schedule."""
    policy = AdaptiveMerge(threshold=-1, capacity=0.75 - removed, radius=radius, spare="fill")
    return replace(RECIPES["default"], policy=policy, levels=(1,), **changes)


def recipes(arch: Arch) -> dict[str, MergeRecipe]:
    """Our recipes by name; the UNet has no consecutive blocks, so there segments would change nothing."""
    joined = {"50 % block, joined": fixed(0.5, scope="block", segment=7)} if arch == "dit" else {}
    default = RECIPES["default"]
    return {
        **{name: RECIPES[name] for name in ("default", "keys", "paper")},
        "own cell": replace(default, policy=replace(default.policy, radius=0)),
        "25 %": fixed(0.25),
        "50 %": fixed(0.5),
        "75 %": fixed(0.75),
        "50 % keys": fixed(0.5, scope="keys"),
        "75 % keys": fixed(0.75, scope="keys"),
        "50 % own cell": fixed(0.5, radius=0),
        "50 % by output": fixed(0.5, metric="output"),
        "50 % plain": fixed(0.5, proportional=False),
        "50 % keys plain": fixed(0.5, scope="keys", proportional=False),
        "25 % block": fixed(0.25, scope="block"),
        "50 % block": fixed(0.5, scope="block"),
        "50 % block plain": fixed(0.5, scope="block", proportional=False),
        **joined,
    }


def subjects(total: int, arch: Arch = "unet") -> dict[str, Subject]:
    """Every subject of a run of `total` steps, by name."""
    ours = {name: Subject("ours", partial(attach, recipe=recipe)) for name, recipe in recipes(arch).items()}
    peers = {name: Subject("peer", peer) for name, peer in PEERS.items()}
    shorter = [Subject("fewer steps", share=share) for share in FEWER]
    fewer = {f"{one.steps(total)} steps": one for one in shorter if one.steps(total) < total}
    return {REFERENCE: Subject("unmerged"), **ours, **peers, **fewer}


def run_pictures(
    *,
    arch: Arch = "unet",
    steps: Sequence[int] = (50, 10),
    images: int = 4,
    size: int = 128,
    only: Sequence[str] | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Draw the same pictures with every subject, one picture after the other, and compare them with the unmerged.

    Args:
        arch: Shipped network that draws.
        steps: Lengths of the unmerged run; each is a comparison of its own.
        images: Pictures, each of a class and seed of its own.
        size: Pixels along each side; at 128 the UNet has 4,096 top-level tokens, the DiT 1,024.
        only: Names of subjects; None means all. The unmerged run is always among them.
        device: Torch device.

    Returns:
        `{"images", "size", "rows"}`, for JSON. A row has `steps`, `subject`, `family`, `seconds` (median), `speedup`
        (median over the pictures) and its `speedup_range`, `psnr` in dB (None: the same picture), `ssim`, `frechet`
        and `removed` (the share of the keys that top-level self-attention was spared, padding not counted as spared);
        of a subject that cannot run, a `note` instead.

    Raises:
        ValueError: If a subject is unknown or there is nothing to draw.
    """
    _check(only, steps, images, arch)
    pipeline = load_shipped(arch).to(device)
    rows: list[dict[str, Any]] = []
    for total in steps:
        everybody = subjects(total, arch)
        chosen = {name: one for name, one in everybody.items() if only is None or name in (REFERENCE, *only)}
        rows += _compare(pipeline, chosen, total, images, size)
    return {"images": images, "size": size, "rows": rows}


def render_pictures(results: Mapping[str, Any]) -> Table:
    """The rows as a table, fastest first within each number of steps."""
    table = Table(title=f"{results['size']} x {results['size']} pixels, pictures: {results['images']}")
    for column in ("steps", "subject", "family", "s/image", "speed-up", "PSNR", "SSIM", "Frechet", "removed"):
        table.add_column(column, justify="left" if column in ("subject", "family") else "right")
    for total in dict.fromkeys(row["steps"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["steps"] == total]
        for row in sorted(rows, key=lambda row: -row.get("speedup", 0)):
            table.add_row(*_cells(row), style="bold" if row["family"] == "unmerged" else None)
        table.add_section()
    return table


def _check(only: Sequence[str] | None, steps: Sequence[int], images: int, arch: Arch) -> None:
    if images < 1:
        raise ValueError(f"images is {images}; expected at least 1")
    known = {name: None for total in steps for name in subjects(total, arch)}
    unknown = [name for name in only or () if name not in known]
    if unknown:
        raise ValueError(f"subject is {unknown[0]!r}; expected one of {list(known)}")


def _compare(
    pipeline: ClassPipeline, chosen: Mapping[str, Subject], total: int, images: int, size: int
) -> list[dict[str, Any]]:
    _draw(pipeline, chosen[REFERENCE], "warm up", CLASSES[0], seed=0, total=2, size=size)
    notes = {name: _warm_up(pipeline, subject, size) for name, subject in chosen.items()}
    able = {name: subject for name, subject in chosen.items() if not notes[name]}
    drafts = _draw_all(pipeline, able, total, images, size)
    encoder = load_shipped("unet").to(pipeline.device)
    features = {name: _features(encoder, drafts[name]) for name in able}
    rows = []
    for name, subject in chosen.items():
        row: dict[str, Any] = {"steps": total, "subject": name, "family": subject.family}
        if name in able:
            row |= _measure(drafts[name], drafts[REFERENCE])
            row["frechet"] = frechet_distance(features[name], features[REFERENCE])
        rows.append(row if name in able else row | {"note": notes[name]})
    return rows


def _warm_up(pipeline: ClassPipeline, subject: Subject, size: int) -> str:
    """Two untimed steps; the reason if it cannot run, which must not cost the others their rows."""
    try:
        _draw(pipeline, subject, "warm up", CLASSES[0], seed=0, total=2, size=size)
    except Exception as error:
        return str(error) or type(error).__name__
    return ""


def _draw_all(
    pipeline: ClassPipeline, able: Mapping[str, Subject], total: int, images: int, size: int
) -> dict[str, list[Draft]]:
    drafts: dict[str, list[Draft]] = defaultdict(list)
    with tqdm(total=images * len(able), desc=f"{total} steps", unit="picture") as bar:
        for seed, motif in enumerate(islice(cycle(CLASSES), images)):
            for name, subject in able.items():
                drafts[name].append(_draw(pipeline, subject, name, motif, seed, total, size))
                bar.update()
    return drafts


def _draw(pipeline: ClassPipeline, subject: Subject, label: str, motif: str, seed: int, total: int, size: int) -> Draft:
    artist = Artist(pipeline, subject.steps(total), size)
    # Peers give blocks a class of their own, by which nobody would find them.
    projections = [site.attention.to_k for site in find_sites(pipeline) if site.level == 1]
    with subject.apply(pipeline), _counted_keys(projections) as keys, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # tomesd and ca-tome draw their destinations from the global generator
        drawing = artist.draw(motif, seed, label)
    return Draft(drawing.picture, drawing.seconds, 1 - mean(keys) / (size // pipeline.token_pixels) ** 2)


@contextmanager
def _counted_keys(projections: Sequence[nn.Module]) -> Iterator[list[int]]:
    """How many tokens the keys of self-attention are made of, call by call: one measure for everybody."""
    keys: list[int] = []
    handles = [one.register_forward_pre_hook(lambda _, args: keys.append(args[0].shape[1])) for one in projections]
    try:
        yield keys
    finally:
        for handle in handles:
            handle.remove()


def _features(encoder: ClassPipeline, drafts: Sequence[Draft]) -> Tensor:
    return torch.cat([picture_features(encoder, draft.picture[None]).cpu() for draft in drafts])


def _measure(drafts: Sequence[Draft], reference: Sequence[Draft]) -> dict[str, Any]:
    pairs = list(zip(drafts, reference, strict=True))
    speedups = [base.seconds / draft.seconds for draft, base in pairs]
    psnr = mean(peak_signal_noise_ratio(draft.picture, base.picture, data_range=1.0).item() for draft, base in pairs)
    pictures, bases = (torch.stack([draft.picture for draft in side]) for side in (drafts, reference))
    return {
        "seconds": median(draft.seconds for draft in drafts),
        "speedup": median(speedups),
        "speedup_range": [min(speedups), max(speedups)],
        "psnr": psnr if math.isfinite(psnr) else None,
        "ssim": structural_similarity_index_measure(pictures, bases, data_range=1.0).item(),
        "removed": mean(draft.removed for draft in drafts),
    }


def _cells(row: Mapping[str, Any]) -> list[str]:
    head = [str(row["steps"]), row["subject"], row["family"]]
    if "note" in row:
        return [*head, "", row["note"]]
    low, high = row["speedup_range"]
    return [
        *head,
        f"{row['seconds']:.2f}",
        f"{row['speedup']:.2f}x ({low:.2f}-{high:.2f})",
        "same" if row["psnr"] is None else f"{row['psnr']:.1f} dB",
        f"{row['ssim']:.4f}",
        f"{round(row['frechet'], 6):.3g}",
        f"{row['removed']:.0%}",
    ]
