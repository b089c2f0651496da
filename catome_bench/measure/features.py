"""Networks in whose features the Frechet distance of pictures is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from catome_bench.measure.frechet import GrowingMoments, Moments, picture_features
from catome_bench.measure.rows import describe
from catome_bench.models.pipeline import load_shipped

SIDE = 128
"""Pixels along each side of what the shipped UNet sees, for which it was trained."""


class Features(NamedTuple):
    """A network that describes pictures.

    Attributes:
        name: Of the network.
        measure: From a picture (3, height, width), float, in [0, 1], to samples (n, channels).
    """

    name: str
    measure: Callable[[Tensor], Tensor]

    @property
    def distance(self) -> str:
        """What the distance is called: FID is that of Inception alone."""
        inception = self.name.startswith("inception_v3")
        return "FID" if inception else f"Frechet distance (features: {self.name})"

    def apart(self, picture: Tensor, reference: Tensor) -> float:
        """1 minus the cosine of the features of two pictures; 0 if they are alike."""
        return 1 - F.cosine_similarity(self.measure(picture), self.measure(reference)).mean().item()

    def moments(self, pictures: Iterable[Tensor]) -> Moments:
        """Those of the samples of all pictures, of which there is at least one."""
        growing = GrowingMoments()
        for picture in pictures:
            growing.add(self.measure(picture))
        return growing.moments()


def open_features(folder: Path | None, device: str | torch.device = "cpu") -> Features:
    """The network in the folder of a model of timm; None: the encoder of the shipped UNet.

    Raises:
        ValueError: If there is no such model, or its weights are not safetensors.
        FileNotFoundError: If the weights of the shipped UNet are not installed.

    Examples:
        >>> open_features(None).distance
        'Frechet distance (features: the shipped UNet)'
    """
    return _shipped(device) if folder is None else _of_timm(folder, device)


def resize(picture: Tensor, side: int) -> Tensor:
    """A square batch of one."""
    return F.interpolate(picture[None], (side, side), mode="bilinear", antialias=True)


def _shipped(device: str | torch.device) -> Features:
    unet = load_shipped("unet").to(device)

    def measure(picture: Tensor) -> Tensor:
        side = min(SIDE, *picture.shape[-2:]) // 8 * 8
        return picture_features(unet, resize(picture, max(8, side)).clamp(0, 1))

    return Features("the shipped UNet", measure)


def _of_timm(folder: Path, device: str | torch.device) -> Features:
    if not (folder / "model.safetensors").is_file():
        raise ValueError(
            f"{folder} has no model.safetensors; pass the folder of a timm model, with config.json beside it"
        )
    import timm
    from timm.data.config import resolve_model_data_config

    try:
        # A file named like this goes before all others that could be in the folder.
        model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval().to(device)
    except Exception as error:
        raise ValueError(f"{folder} cannot be opened: {describe(error)}") from error
    config = resolve_model_data_config(model)
    mean, std = (torch.tensor(config[name], device=device).view(-1, 1, 1) for name in ("mean", "std"))

    @torch.no_grad()
    def measure(picture: Tensor) -> Tensor:
        return model((resize(picture.to(device), config["input_size"][-1]) - mean) / std)

    return Features(model.pretrained_cfg["architecture"], measure)
