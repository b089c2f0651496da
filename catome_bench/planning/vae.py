"""How much smaller latents are than the pictures that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TYPICAL_SCALE = (8, 4)
SCALES = {
    "ErnieImageTransformer2DModel": (16, 4),
    "HunyuanImageTransformer2DModel": (32, 4),
    "HunyuanVideo15Transformer3DModel": (16, 4),
    "LTX2VideoTransformer3DModel": (32, 8),
    "LTXVideoTransformer3DModel": (32, 8),
}
"""What VAEs of these networks do otherwise, by the class of the network."""


def vae_scale(config: Mapping[str, Any]) -> tuple[int, int]:
    """Pixels per latent along each side, and frames per latent frame, from a VAE's configuration.

    Examples:
        >>> vae_scale({"block_out_channels": [128, 256, 512, 512]})
        (8, 4)
        >>> vae_scale({"dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True]})
        (8, 4)
        >>> vae_scale({"spatio_temporal_scaling": [True, True, True, False], "patch_size": 4, "patch_size_t": 1})
        (32, 8)
    """
    if "spatio_temporal_scaling" in config:
        halvings = 2 ** sum(config["spatio_temporal_scaling"])
        return config["patch_size"] * halvings, config["patch_size_t"] * halvings
    stages = next(
        (config[name] for name in ("dim_mult", "encoder_block_out_channels", "block_out_channels") if name in config),
        [0] * 4,
    )
    side = config.get("scale_factor_spatial") or config.get("spatial_compression_ratio") or 2 ** (len(stages) - 1)
    frames = config.get("scale_factor_temporal") or config.get("temporal_compression_ratio")
    return side, frames or 2 ** sum(config.get("temperal_downsample", (True, True)))
