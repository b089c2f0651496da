"""How the call of a diffusers transformer gives the grid of its tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from torch import nn

from catome_adapters.sites.call import Signature
from catome_adapters.sites.grid import (
    GridSize,
    Measure,
    PositionGrid,
    Shape,
    grid_size,
    patches,
    shapes_from,
    sizes_from,
)
from catome_adapters.sites.site import Reason

MEASURES: dict[str, Measure | Reason] = {
    "JoyImageEditPlusTransformer3DModel": shapes_from("shape_list", padded=True),
    "QwenImage21Transformer2DModel": shapes_from("img_shapes", last=True),
    "AnyFlowFARTransformer3DModel": Reason(
        "AnyFlowFARTransformer3DModel attends to earlier frames through a mask over blocks of tokens or through cached "
        "keys, and merging would move the tokens of both"
    ),
}
"""By the class of a network: what neither its arguments nor its configuration say in the usual way."""
FRAMES_FIRST = ("AnyFlowTransformer3DModel", "CogVideoXTransformer3DModel", "ConsisIDTransformer3DModel")
"""Their latents are (batch, frames, channels, height, width)."""


def measure_for(network: nn.Module) -> Measure | Reason:
    """How the network's arguments give the grid; or what was looked for."""
    names, patch = Signature.of(network).names, patch_size(network)
    if known := MEASURES.get(type(network).__name__):
        return known
    if make := CONFIGURED.get(type(network).__name__):
        return make(network)
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
        if "visual_rope_pos" in names:
            return kandinsky_grid(patch)
        return patches("hidden_states", patch, frames_first=type(network).__name__ in FRAMES_FIRST)
    return Reason(
        f"the call of {type(network).__name__} does not give the grid: looked for img_ids, img_shapes, (num_frames, "
        "height, width), or hidden_states and a patch_size in its config"
    )


def kandinsky_grid(patch: Shape) -> Measure:
    """One token per patch of a video (batch, frames, height, width, channels), in raster order."""

    def measure(arguments: Mapping[str, Any]) -> Shape:
        if arguments.get("sparse_params") is not None:
            raise ValueError(
                "the model was called with sparse_params, for attention between blocks of 8 x 8 tokens, which merging "
                "changes; call it with sparse_params=None, as pipelines do where the transformer's config has "
                "attention_type='regular', or detach the session"
            )
        sizes = arguments["hidden_states"].shape[1:4]
        return tuple(size // step for size, step in zip(sizes, patch, strict=True))

    return measure


def last_item(network: nn.Module) -> Measure:
    """Latents (batch, channels, frames, height, width), or several items of them along dimension 1.

    The last item is the one drawn, and its tokens come first.
    """
    patch = patch_size(network)

    def measure(arguments: Mapping[str, Any]) -> GridSize:
        shape = arguments["hidden_states"].shape
        items = shape[1] if len(shape) == 6 else 1
        frames, *plane = (size // step for size, step in zip(shape[-3:], patch, strict=True))
        grid = tuple(plane) if frames == 1 else (frames, *plane)
        return GridSize(grid, (items - 1) * prod(grid))

    return measure


def in_front_or_behind(network: nn.Module) -> Measure:
    """Latents of an image, reference images behind it, and text in front; or behind, where a batch pads it."""
    image, step = patches("hidden_states", patch_size(network)), patch_size(network)[0]

    def measure(arguments: Mapping[str, Any]) -> GridSize:
        others = arguments.get("context_latents") or ()
        behind = sum((one.shape[-2] // step) * (one.shape[-1] // step) for one in others)
        counts = text_counts(network, arguments)
        padded = min(counts) < max(counts)
        return GridSize(grid_size(image(arguments)).shape, behind + (max(counts) if padded else 0))

    return measure


def text_counts(network: nn.Module, arguments: Mapping[str, Any]) -> list[int]:
    """Tokens that the network makes of every text, whose padding its mask leaves out."""
    mask, config = arguments.get("encoder_attention_mask"), _config(network)
    if mask is None:
        return [0]
    from diffusers.models.transformers.transformer_bria_fibo2 import compute_gist_count

    return compute_gist_count(
        mask.sum(dim=1).tolist(),
        min_gist=config.min_num_gist_tokens,
        max_gist=config.max_num_gist_tokens,
        gist_step=config.gist_step,
        min_text_len=config.gist_min_text_len,
        max_text_len=config.gist_max_text_len,
    )


CONFIGURED: dict[str, Callable[[nn.Module], Measure]] = {
    "BriaFibo2Transformer2DModel": in_front_or_behind,
    "JoyImageEditTransformer3DModel": last_item,
}
"""By the class of a network, where the measure also depends on its configuration."""


def patch_size(network: nn.Module) -> Shape:
    """Size of a patch from the config: (height, width) or (frames, height, width); empty if it names none."""
    config = _config(network)
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, (tuple, list)):
        return tuple(patch)
    if not isinstance(patch, int):
        return ()
    video = hasattr(config, "patch_size_t") or type(network).__name__.endswith("3DModel")
    return (getattr(config, "patch_size_t", None) or 1, patch, patch) if video else (patch, patch)


def default_shape(network: nn.Module) -> Shape | None:
    """The grid at the size that the config names."""
    size, patch = getattr(_config(network), "sample_size", None), patch_size(network)
    if size is None or len(patch) != 2:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return height // patch[0], width // patch[1]


def _config(network: nn.Module) -> Any:
    return getattr(network, "config", None)
