"""How the call of a diffusers transformer gives the grid of its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from catome_adapters.sites.call import Signature
from catome_adapters.sites.grid import GridSize, Measure, PositionGrid, Shape, patches, shapes_from, sizes_from
from catome_adapters.sites.site import Reason


class PositionsAtEnd(PositionGrid):
    """The positions of a sequence that ends with the image; in front of it are text and padding."""

    def __init__(self) -> None:
        super().__init__("position_ids")

    def __call__(self, arguments: Mapping[str, Any]) -> GridSize:
        """The grid of the image; samples whose positions are their own share it."""
        size, given = super().__call__(arguments), arguments[self.argument]
        images = given[..., -prod(size.shape) :, :]
        if given.ndim == 3:
            torch.ops.aten._assert_async.msg(
                (images == images[:1]).all(),
                f"{self.argument} of the samples of a batch have other images than the first one: call the network for "
                "each kind of image, or detach the session",
            )
        return size

    def positions(self, given: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """From the end to the front, with the signs changed: a raster again, and the image comes first."""
        # Krea 2 has positions of text that are those of the first pixel, but its `hidden_states` are the image alone.
        return -given[-arguments["hidden_states"].shape[1] :].flip(0)

    def behind(self, others: int, arguments: Mapping[str, Any]) -> int:
        """None: what else there is lies in front."""
        return 0


class HalvedPositions(PositionGrid):
    """Rows and columns half as far apart as usual; those of reference images are an argument of their own."""

    def __init__(self) -> None:
        super().__init__("img_ids", step=0.5)

    def behind(self, others: int, arguments: Mapping[str, Any]) -> int:
        """The reference images, which the network puts behind the image."""
        references = arguments.get("image_cond_ids")
        return others if references is None else others + len(references)


MEASURES: dict[str, Measure | type[PositionGrid] | Reason] = {
    "Flux3Transformer2DModel": HalvedPositions,
    "Ideogram4Transformer2DModel": PositionsAtEnd,
    "Krea2Transformer2DModel": PositionsAtEnd,
}
"""By the class of a network: what neither its arguments nor its configuration say in the usual way.

A class stands for one instance for every network, which remembers the positions that it has read.
"""


def measure_for(network: nn.Module) -> Measure | Reason:
    """How the network's arguments give the grid; or what was looked for."""
    names, patch = Signature.of(network).names, patch_size(network)
    if known := MEASURES.get(type(network).__name__):
        return known() if isinstance(known, type) and issubclass(known, PositionGrid) else known
    if hasattr(network, "temporal_transformer_blocks"):
        return Reason(
            f"{type(network).__name__} attends within every frame and over frames in turn, so that no grid is that of "
            "all its blocks"
        )
    if "img_ids" in names:
        return PositionGrid("img_ids")
    if "img_shapes" in names:
        return shapes_from("img_shapes")
    if {"num_frames", "height", "width"} <= set(names):
        return sizes_from("num_frames", "height", "width")
    if "hidden_states" in names and patch:
        # CogVideoX, alone among them, is (batch, frames, channels, height, width).
        return patches("hidden_states", patch, frames_first=hasattr(_config(network), "sample_frames"))
    return Reason(
        f"the call of {type(network).__name__} does not give the grid: looked for img_ids, img_shapes, (num_frames, "
        "height, width), or hidden_states and a patch_size in its config"
    )


def patch_size(network: nn.Module) -> Shape:
    """Size of a patch from the config: (height, width) or (frames, height, width); empty if it names none."""
    config = _config(network)
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, (tuple, list)):
        return tuple(patch)
    if not isinstance(patch, int):
        return ()
    video = hasattr(config, "patch_size_t")
    return ((config.patch_size_t or 1), patch, patch) if video else (patch, patch)


def default_shape(network: nn.Module) -> Shape | None:
    """The grid at the size that the config names."""
    size, patch = getattr(_config(network), "sample_size", None), patch_size(network)
    if size is None or len(patch) != 2:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return height // patch[0], width // patch[1]


def _config(network: nn.Module) -> Any:
    return getattr(network, "config", None)
