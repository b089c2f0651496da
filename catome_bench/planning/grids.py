"""The grids of a network's sites for pictures or videos of a size in pixels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from catome_adapters import MergeSite, SkippedSite, find_sites
from catome_adapters.architectures.configured import patch_size
from catome_adapters.architectures.encoder import is_encoder
from catome_adapters.architectures.find import find_candidates
from catome_adapters.architectures.grids import measure_for
from catome_adapters.architectures.unet import at_size, is_unet
from catome_adapters.architectures.vit import is_vit
from catome_adapters.sites.call import Signature
from catome_adapters.sites.grid import PositionGrid

PACKED = (2, 2)
"""Pipelines fold as many latents into one token before they call a network that takes tokens with their positions."""

Pixels = tuple[int | None, int | None, int | None]


def sites_at(network: nn.Module, pixels: Pixels, scale: tuple[int, int]) -> list[MergeSite]:
    """The sites of a network, with their grids at a size.

    Args:
        network: A network of diffusers, or a ViT, whose grid is that of the size it was built for.
        pixels: Frames, height and width; None: the network's own.
        scale: Pixels per pixel of the network's input along each side, and frames per frame.

    Raises:
        ValueError: If there is nothing to merge, or the size is unknown or does not fit.
    """
    sites = find_sites(network)
    if not sites:
        reasons = [one.reason for one in find_candidates(network) if isinstance(one, SkippedSite)]
        reasons = reasons or ["it has no lists of transformer blocks"]
        raise ValueError(f"no tokens to merge in {type(network).__name__}: {reasons[0]}")
    if is_vit(network) or is_encoder(network):
        _refuse_frames(network, pixels)
        return sites
    size = input_size(network, pixels, scale)
    if is_unet(network):
        return at_size(sites, (size[0], size[1]))
    shape = tuple(side // step for side, step in zip(size, _patch(network), strict=True))
    return [replace(site, shape=shape) for site in sites]


def input_size(network: nn.Module, pixels: Pixels, scale: tuple[int, int]) -> tuple[int, ...]:
    """Size of the network's input: (height, width), or (frames, height, width) for a video.

    Raises:
        ValueError: If a side is unknown, or not a multiple of what one token covers.

    Examples:
        >>> from catome_bench.planning.blueprint import read_blueprint
        >>> input_size(read_blueprint("shipped").networks["unet"], (None, 256, None), (2, 1))
        (128, 64)
    """
    patch = _patch(network)
    side, frame = scale
    video = len(patch) == 3
    if not video:
        _refuse_frames(network, pixels)
    for name, given, step in zip(("height", "width"), pixels[1:], patch[-2:], strict=True):
        if given is not None and given % (side * step):
            raise ValueError(f"{name} is {given}; expected a multiple of {side * step} pixels, which one token covers")
    frames, height, width = pixels
    sizes = [None if frames is None else (frames - 1) // frame + 1, height and height // side, width and width // side]
    own = _own_size(network, frame)
    known = [given or default for given, default in zip(sizes, own, strict=True)][-len(patch) :]
    options = ("--frames", "--height", "--width")[-len(patch) :]
    missing = [option for option, length in zip(options, known, strict=True) if length is None]
    if missing:
        raise ValueError(f"the configuration of {type(network).__name__} names no size: pass {' and '.join(missing)}")
    return tuple(length for length in known if length is not None)


def _patch(network: nn.Module) -> tuple[int, ...]:
    """What one token covers of the network's input; for a UNet, of the coarsest that it can take."""
    if is_unet(network):
        return (1, 1)
    by_position = isinstance(measure_for(network), PositionGrid) or "img_shapes" in Signature.of(network).names
    return PACKED if by_position else patch_size(network)


def _own_size(network: Any, frame: int) -> tuple[int | None, int | None, int | None]:
    config = network.config
    size = config.get("sample_size") or (config.get("sample_height"), config.get("sample_width"))
    height, width = (size, size) if isinstance(size, int) else size[-2:]
    frames = config.get("sample_frames")
    return frames and (frames - 1) // frame + 1, height, width


def _refuse_frames(network: nn.Module, pixels: Pixels) -> None:
    if pixels[0] is not None:
        raise ValueError(f"frames is {pixels[0]}; {type(network).__name__} takes single pictures: leave --frames out")
