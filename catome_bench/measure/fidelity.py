"""How near pictures are to those of the unmerged run."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import mean

from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure


def psnr(picture: Tensor, reference: Tensor) -> float:
    """PSNR in dB of one picture or several (..., 3, height, width) in [0, 1] against references; inf if all are equal.

    Of several it is that of their mean squared error, to which equal ones contribute nothing.

    Examples:
        >>> import torch
        >>> round(psnr(torch.full((3, 16, 16), 0.1), torch.zeros(3, 16, 16)), 3)
        20.0
    """
    return peak_signal_noise_ratio(picture, reference, data_range=1.0).item()


def ssim(picture: Tensor, reference: Tensor) -> float:
    """Structural similarity of a picture (3, height, width) in [0, 1] with its reference.

    Examples:
        >>> import torch
        >>> ssim(torch.zeros(3, 16, 16), torch.zeros(3, 16, 16))
        1.0
    """
    similarity = structural_similarity_index_measure(picture[None], reference[None], data_range=1.0)
    assert isinstance(similarity, Tensor)  # a tuple only where more is returned on request
    return similarity.item()


def mean_ssim(pictures: Iterable[Tensor], references: Iterable[Tensor]) -> float:
    """`ssim` of each picture, averaged."""
    return mean(map(ssim, pictures, references))
