"""How near pictures are to those of the unmerged run."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure


def mean_psnr(pictures: Sequence[Tensor], references: Sequence[Tensor]) -> float:
    """PSNR in dB of each picture (3, height, width) in [0, 1] against its reference, averaged; inf if one is equal.

    Examples:
        >>> black, gray = torch.zeros(3, 16, 16), torch.full((3, 16, 16), 0.1)
        >>> round(mean_psnr([gray, gray], [black, black]), 3)
        20.0
    """
    pairs = zip(pictures, references, strict=True)
    return mean(peak_signal_noise_ratio(picture, base, data_range=1.0).item() for picture, base in pairs)


def mean_ssim(pictures: Sequence[Tensor], references: Sequence[Tensor]) -> float:
    """Structural similarity of pictures (3, height, width) in [0, 1] with their references, averaged.

    Examples:
        >>> black = torch.zeros(3, 16, 16)
        >>> mean_ssim([black], [black])
        1.0
    """
    stacked, bases = torch.stack(list(pictures)), torch.stack(list(references))
    similarity = structural_similarity_index_measure(stacked, bases, data_range=1.0)
    assert isinstance(similarity, Tensor)  # a tuple only where more is returned on request
    return similarity.item()
