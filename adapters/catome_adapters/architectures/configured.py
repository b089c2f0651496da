"""What the configuration of a diffusers transformer says about its tokens."""

from __future__ import annotations

from typing import Any

from torch import nn

from catome_adapters.sites.grid import Shape


def patch_size(network: nn.Module) -> Shape:
    """Size of a patch from the config: (height, width) or (frames, height, width); empty if it names none."""
    config = config_of(network)
    # Z-Image has weights for several, of which a call takes one.
    patch = getattr(config, "patch_size", None) or next(iter(getattr(config, "all_patch_size", ())), None)
    if isinstance(patch, (tuple, list)):
        return tuple(patch)
    if not isinstance(patch, int):
        return ()
    video = hasattr(config, "patch_size_t") or type(network).__name__.endswith("3DModel")
    return (getattr(config, "patch_size_t", None) or 1, patch, patch) if video else (patch, patch)


def default_shape(network: nn.Module) -> Shape | None:
    """The grid at the size that the config names."""
    size, patch = getattr(config_of(network), "sample_size", None), patch_size(network)
    if size is None or len(patch) != 2:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return height // patch[0], width // patch[1]


def config_of(network: nn.Module) -> Any:
    """The configuration; None for a network of no library that keeps one."""
    return getattr(network, "config", None)
