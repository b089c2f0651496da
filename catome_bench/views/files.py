"""The pictures and merge maps of the demo as files of their own, from which a report is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from catome_bench.files import whole_file
from catome_bench.models.artist import Pair
from catome_bench.plots import SHADE, merged_tokens
from catome_bench.views.comparison import save_picture, to_bytes
from catome_bench.views.figures import square_grid
from catome_core import MergePlan


def save_pairs(folder: Path, pairs: Sequence[Pair]) -> list[dict[str, str]]:
    """Write every picture into `folder`/pictures.

    Returns:
        For each pair: its name, and the file of each picture.
    """
    (folder / "pictures").mkdir(exist_ok=True)
    files = [{side: f"pictures/{number}-{side}.png" for side in ("baseline", "merged")} for number in range(len(pairs))]
    for pair, names in zip(pairs, files, strict=True):
        for side, name in names.items():
            picture: Tensor = getattr(pair, side).picture
            save_picture(to_bytes(picture.clamp(0, 1)), folder / name)
    return [{"name": pair.name} | names for pair, names in zip(pairs, files, strict=True)]


def save_maps(folder: Path, history: Sequence[Mapping[str, MergePlan]]) -> dict[str, str]:
    """Write a strip for each layer into `folder`/merge-maps: the maps of all steps below one another, merged is dark.

    Returns:
        The file of each layer.
    """
    (folder / "merge-maps").mkdir(exist_ok=True)
    files = {site: f"merge-maps/{number}.png" for number, site in enumerate(history[0])}
    for site, name in files.items():
        strip = np.concatenate([_shade(plans[site]) for plans in history])
        with whole_file(folder / name) as part:
            Image.fromarray(strip).save(part)
    return files


def _shade(plan: MergePlan) -> np.ndarray:
    merged = merged_tokens(plan, square_grid(plan)).cpu().numpy()
    return np.where(merged, np.uint8(255 * (1 - SHADE)), np.uint8(255))
