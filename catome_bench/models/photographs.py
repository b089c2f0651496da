"""The photographs the shipped models were trained on; all of them come with scikit-image and scikit-learn."""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F


class Photograph(NamedTuple):
    """One class of the shipped models: a photograph, and the square of it that shows the subject.

    `frame` is (left, top, side) in pixels of the original file.
    """

    name: str
    package: str
    path: str
    frame: tuple[int, int, int]
    credit: str


PHOTOGRAPHS = (
    Photograph("astronaut", "skimage", "data/astronaut.png", (50, 0, 400), "Eileen Collins, NASA, public domain"),
    Photograph("cat", "skimage", "data/chelsea.png", (120, 0, 300), "Chelsea by Stefan van der Walt, CC0"),
    Photograph("coffee", "skimage", "data/coffee.png", (130, 0, 400), "Pikolo Espresso Bar by Rachel Michetti, CC0"),
    Photograph("flower", "sklearn", "datasets/images/flower.jpg", (125, 30, 360), "vultilion, CC BY 2.0"),
    Photograph("rocket", "skimage", "data/rocket.jpg", (107, 0, 427), "SpaceX, public domain"),
    Photograph("temple", "sklearn", "datasets/images/china.jpg", (0, 0, 427), "danielbuechele, CC BY 2.0"),
)
CLASS_NAMES = tuple(photograph.name for photograph in PHOTOGRAPHS)


def load_photograph(photograph: Photograph) -> Tensor:
    """Read the framed square of a photograph as a float32 tensor (3, side, side) in [-1, 1]."""
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    left, top, side = photograph.frame
    with as_file(files(photograph.package) / photograph.path) as file, Image.open(file) as image:
        square = image.convert("RGB").crop((left, top, left + side, top + side))
    return pil_to_tensor(square).float() / 127.5 - 1


def random_view(square: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Crop a random 80 to 100 % of a square photograph and resize it to (3, pixels, pixels)."""
    side = square.shape[-1]
    scale, left, top = torch.rand(3, generator=generator).tolist()
    crop = round(side * (0.8 + 0.2 * scale))
    x, y = round(left * (side - crop)), round(top * (side - crop))
    view = square[None, :, y : y + crop, x : x + crop]
    return F.interpolate(view, (pixels, pixels), mode="bilinear", antialias=True)[0].clamp(-1, 1)


def to_latents(pixels: Tensor) -> Tensor:
    """Fold every 2 x 2 pixels into channels: (batch, 3, 2h, 2w) to (batch, 12, h, w); stands in for a VAE."""
    return rearrange(pixels, "b c (h i) (w j) -> b (c i j) h w", i=2, j=2)


def to_pixels(latents: Tensor) -> Tensor:
    """Inverse of `to_latents`: (batch, 12, h, w) to (batch, 3, 2h, 2w)."""
    return rearrange(latents, "b (c i j) h w -> b c (h i) (w j)", i=2, j=2)
