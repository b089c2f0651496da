"""Frechet distance between two sets of pictures, in the features of the shipped UNet's own encoder."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from catome_bench.models.photographs import to_latents
from catome_bench.models.pipeline import ClassPipeline, class_tokens

# Almost free of noise, so that the encoder takes a finished picture.
TIMESTEP = 10
FEWEST_TOGETHER = 1024
"""Samples that are factorized at once, or as many as there are channels."""


@torch.no_grad()
def picture_features(pipeline: ClassPipeline, pictures: Tensor) -> Tensor:
    """Features of the unconditional encoder at every position of its coarsest grid.

    Each position counts as one sample, so a few pictures give many more samples than channels.

    Args:
        pipeline: The pipeline of `load_shipped("unet")`, unmerged.
        pictures: Pictures (batch, 3, size, size), float, in [0, 1].

    Returns:
        Features (batch * positions, channels), float64.
    """
    unet, classes = pipeline.network, len(pipeline.config["class_names"])
    latents = to_latents(pictures.to(unet.device, unet.dtype) * 2 - 1)
    no_class = class_tokens(torch.full((len(pictures),), classes, device=unet.device), classes)
    features: list[Tensor] = []
    handle = unet.mid_block.register_forward_hook(lambda *call: features.append(call[-1]))
    try:
        unet(latents, TIMESTEP, no_class.to(unet.dtype))
    finally:
        handle.remove()
    return rearrange(features[0], "b c h w -> (b h w) c").double()


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Squared Frechet distance between two sets of samples, each modeled as a Gaussian.

    `|m1 - m2|^2 + tr(S1 + S2 - 2 sqrt(S1 S2))`, as in the Frechet inception distance. With a QR factorization of the
    centered samples, the trace of the root is the nuclear norm of `R1 R2^T`. So no matrix root is taken, and a set of
    fewer samples than channels needs no special case.

    Args:
        first: Samples (n, channels), float; n is at least 2.
        second: Samples (m, channels), float.

    Returns:
        The distance, in squared units of the features; 0 for equal sets.

    Raises:
        ValueError: If the channels differ or a set has fewer than two samples.

    Examples:
        >>> samples = torch.tensor([[-1.0], [1.0]])
        >>> round(frechet_distance(samples, samples + 3), 6)
        9.0
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or min(len(first), len(second)) < 2:
        raise ValueError(
            f"samples have shapes {tuple(first.shape)} and {tuple(second.shape)}; "
            "expected (n, channels) and (m, channels) with n and m at least 2"
        )
    return Moments.of(first).distance(Moments.of(second))


class Moments(NamedTuple):
    """What the distance needs to know of a set of samples; sets can be measured in parts, and joined.

    Attributes:
        size: How many samples.
        mean: (channels,), float64.
        root: A factor R of the scatter: `R^T R` is the sum of the outer products of the centered samples.
    """

    size: int
    mean: Tensor
    root: Tensor

    @classmethod
    def of(cls, samples: Tensor) -> Moments:
        """Those of samples (n, channels), float, of which there is at least one."""
        samples = samples.double()
        mean = samples.mean(0)
        return cls(len(samples), mean, torch.linalg.qr(samples - mean, mode="r").R)

    def joined(self, other: Moments) -> Moments:
        """Those of both sets together."""
        size = self.size + other.size
        apart = other.mean - self.mean
        between = apart * (self.size * other.size / size) ** 0.5
        root = torch.linalg.qr(torch.cat([self.root, other.root, between[None]]), mode="r").R
        return Moments(size, self.mean + apart * (other.size / size), root)

    def distance(self, other: Moments) -> float:
        """Squared Frechet distance; see `frechet_distance`. Both sets have at least two samples."""
        scale, other_scale = (1 / (one.size - 1) for one in (self, other))
        traces = scale * self.root.square().sum() + other_scale * other.root.square().sum()
        common = torch.linalg.matrix_norm(self.root @ other.root.mT, "nuc") * (scale * other_scale) ** 0.5
        return max(0.0, ((self.mean - other.mean).square().sum() + traces - 2 * common).item())


class GrowingMoments:
    """Moments of samples that come in parts.

    A factorization takes as long for one sample as for as many as there are channels: so samples wait for one another.

    Examples:
        >>> growing = GrowingMoments()
        >>> for value in (1.0, 3.0):
        ...     growing.add(torch.tensor([[value]]))
        >>> growing.moments().mean
        tensor([2.], dtype=torch.float64)
    """

    def __init__(self) -> None:
        self._joined: Moments | None = None
        self._waiting: list[Tensor] = []

    def add(self, samples: Tensor) -> None:
        """Add samples (n, channels), float, of which there is at least one."""
        self._waiting.append(samples)
        if sum(map(len, self._waiting)) >= max(samples.shape[1], FEWEST_TOGETHER):
            self.moments()

    def moments(self) -> Moments:
        """Those of all samples, of which there is at least one."""
        if self._waiting:
            new = Moments.of(torch.cat(self._waiting))
            self._joined = new if self._joined is None else self._joined.joined(new)
            self._waiting.clear()
        assert self._joined is not None
        return self._joined
