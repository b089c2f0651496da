"""How the call of a diffusers transformer gives the grid of its tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from catome_adapters.sites.call import Signature
from catome_adapters.sites.grid import GridSize, Measure, PositionGrid, Shape, patches, shapes_from, sizes_from
from catome_adapters.sites.site import Reason


def listed_images(arguments: Mapping[str, Any]) -> Shape:
    """Z-Image: `x` lists an image or video (channels, frames, height, width) for every sample, all of one size.

    Examples:
        >>> listed_images({"x": [torch.zeros(4, 1, 6, 8), torch.zeros(4, 1, 6, 8)]})
        (3, 4)
    """
    images = arguments["x"]
    if isinstance(images[0], list):
        raise ValueError(
            "the model was called with a list of images for every sample (omni mode), which lie behind one another, "
            "each with padding of its own: detach the session for this call"
        )
    sizes = [tuple(image.shape[1:]) for image in images]
    if any(size != sizes[0] for size in sizes):
        raise ValueError(f"x has images of {sizes}; expected one size, since a batch shares its grid: call it for each")
    patch, frames_patch = arguments.get("patch_size", 2), arguments.get("f_patch_size", 1)
    frames, height, width = sizes[0]
    plane = height // patch, width // patch
    return plane if frames == frames_patch else (frames // frames_patch, *plane)


def behind_text(patch: Shape) -> Measure:
    """Lumina 2: the image follows the text without its padding, so that all texts of a call need one length.

    Args:
        patch: Size of a patch of `hidden_states`, (height, width).

    Examples:
        >>> mask = torch.tensor([[1, 1, 0], [1, 1, 0]])
        >>> behind_text((2, 2))({"hidden_states": torch.zeros(2, 4, 6, 8), "encoder_attention_mask": mask})
        (3, 4)
    """
    of_image = patches("hidden_states", patch)

    def measure(arguments: Mapping[str, Any]) -> Shape | GridSize:
        lengths: Tensor = arguments["encoder_attention_mask"].sum(1)
        same = (lengths == lengths[0]).all()
        if torch.compiler.is_compiling():
            torch.ops.aten._assert_async.msg(same, "the texts of a call have several lengths, and images start there")
        # The network reads them, too, so that the host waits for the device in any case.
        elif not same:
            raise ValueError(
                f"encoder_attention_mask has texts of {lengths.tolist()} tokens, and every image starts behind its "
                "text, so that a batch has no grid in common: call the model for each of them (one prompt at a time)"
            )
        return of_image(arguments)

    return measure


MEASURES: dict[str, Measure | Reason] = {"ZImageTransformer2DModel": listed_images}
"""By the class of a network: what neither its arguments nor its configuration say in the usual way."""
MEASURES_BY_PATCH: dict[str, Callable[[Shape], Measure]] = {
    # It takes img_ids, too, of images that are in patches already, which is an error.
    "HiDreamImageTransformer2DModel": partial(patches, "hidden_states"),
    "Lumina2Transformer2DModel": behind_text,
}
"""The same, for the size of a patch that the configuration names."""


def measure_for(network: nn.Module) -> Measure | Reason:
    """How the network's arguments give the grid; or what was looked for."""
    names, patch = Signature.of(network).names, patch_size(network)
    if known := MEASURES.get(type(network).__name__):
        return known
    if of_patch := MEASURES_BY_PATCH.get(type(network).__name__):
        return of_patch(patch)
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
