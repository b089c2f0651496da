"""How the call of a diffusers transformer gives the grid of its tokens."""

from __future__ import annotations

from torch import nn

from catome_adapters.architectures.configured import patch_size
from catome_adapters.architectures.measures import MEASURES
from catome_adapters.sites.call import Signature
from catome_adapters.sites.grid import Measure, PositionGrid, patches, shapes_from, sizes_from
from catome_adapters.sites.site import Reason


def measure_for(network: nn.Module) -> Measure | Reason:
    """How the network's arguments give the grid; or what was looked for."""
    if make := MEASURES.get(type(network).__name__):
        return make(network)
    names, patch = Signature.of(network).names, patch_size(network)
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
        return patches("hidden_states", patch)
    return Reason(
        f"the call of {type(network).__name__} does not give the grid: looked for img_ids, img_shapes, (num_frames, "
        "height, width), or hidden_states and a patch_size in its config"
    )
