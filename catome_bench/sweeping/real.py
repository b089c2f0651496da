"""Pictures that were not drawn, to measure a distance to."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from catome_bench.comparison.pictures import to_pictures
from catome_bench.measure.features import Features
from catome_bench.measure.frechet import Moments

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def find_pictures(folder: Path) -> list[Path]:
    """The pictures in a folder and the folders in it.

    Raises:
        ValueError: If there are none.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f"{folder} has no pictures; pass a folder with files of {', '.join(SUFFIXES)}")
    return found


def measure_pictures(files: list[Path], features: Features, progress: bool) -> Moments:
    """What the Frechet distance needs to know of them.

    Raises:
        ValueError: If one cannot be read.
    """
    bar = tqdm(files, unit="picture", desc="real pictures", disable=not progress)
    return features.moments(_read(file) for file in bar)


def _read(file: Path) -> Tensor:
    try:
        with Image.open(file) as image:
            return to_pictures(image)[0]
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error}); take it out of the folder") from error
