"""What a pipeline returns, as pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_pictures(output: Any) -> Tensor:
    """The pictures that a pipeline has returned, or the frames of its videos.

    Args:
        output: An object with `images` or `frames`, a tuple that begins with them, or they themselves: PIL images,
            arrays (..., height, width, channels) or tensors (..., channels, height, width), or lists of these, of one
            or three channels; float in [0, 1], or uint8.

    Returns:
        Pictures (n, 3, height, width), float32, in [0, 1], on the host.

    Raises:
        TypeError: If there are no pictures.
        ValueError: If a value is not finite, or these are no pictures, but latents, say.

    Examples:
        >>> to_pictures([Image.new("L", (4, 2), 255)]).shape
        torch.Size([1, 3, 2, 4])
    """
    found = getattr(output, "images", getattr(output, "frames", output))
    pictures = _to_tensor(found[0] if isinstance(found, tuple) else found)
    if not pictures.isfinite().all():
        raise ValueError("a value of the pictures is not finite; draw in another dtype, such as float32 or bfloat16")
    if pictures.shape[1] not in (1, 3) or pictures.amin() < 0 or pictures.amax() > 1:
        low, high = pictures.amin().item(), pictures.amax().item()
        raise ValueError(
            f"what was drawn has shape {tuple(pictures.shape)} and values from {low:.3g} to {high:.3g}; expected "
            'pictures of 1 or 3 channels in [0, 1]: leave output_type="latent" out, and scale them if need be'
        )
    return pictures.expand(-1, 3, -1, -1)


def _to_tensor(found: Any) -> Tensor:
    """Float32 (n, channels, height, width), on the host."""
    if isinstance(found, list | tuple) and found:
        return torch.cat([_to_tensor(one) for one in found])
    if isinstance(found, Image.Image):
        found = np.array(found.convert("RGB"))
    if isinstance(found, np.ndarray) and found.ndim >= 3:
        found = torch.from_numpy(found).movedim(-1, -3)
    if not isinstance(found, Tensor) or found.ndim < 3 or not found.numel():
        what = getattr(found, "shape", type(found).__name__)
        raise TypeError(f"nothing was drawn: {what}; expected PIL images, arrays or tensors of pictures")
    values = found.detach().cpu()
    return (values / 255 if values.dtype == torch.uint8 else values.float()).reshape(-1, *values.shape[-3:])
