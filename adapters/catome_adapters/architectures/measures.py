"""Grids of networks whose calls say them in a way of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from catome_adapters.architectures.configured import patch_size
from catome_adapters.sites.grid import GridSize, Measure, PositionGrid, Shape, grid_size, patches, shapes_from
from catome_adapters.sites.site import Reason

KEPT_KEYS = (
    "the model was called with {}, which keeps keys of reference images by their index in the sequence, which merging "
    "changes; call it without, or detach the session"
)


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
        return GridSize(size.shape, 0)

    def positions(self, given: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """From the end to the front, with the signs changed: a raster again, and the image comes first."""
        # Krea 2 has positions of text that are those of the first pixel, but its `hidden_states` are the image alone.
        return -given[-arguments["hidden_states"].shape[1] :].flip(0)


class UncachedPositions(PositionGrid):
    """Flux.2, which may keep keys of reference images over steps."""

    def __call__(self, arguments: Mapping[str, Any]) -> GridSize:
        """The grid of the image."""
        if arguments.get("kv_cache_mode") is not None:
            raise ValueError(KEPT_KEYS.format(f"kv_cache_mode={arguments['kv_cache_mode']!r}"))
        return super().__call__(arguments)


class HalvedPositions(PositionGrid):
    """Rows and columns half as far apart as usual; those of reference images are an argument of their own."""

    def __call__(self, arguments: Mapping[str, Any]) -> GridSize:
        """The grid of the image, behind which the network puts reference images."""
        size, references = super().__call__(arguments), arguments.get("image_cond_ids")
        return size if references is None else GridSize(size.shape, (size.extra or 0) + len(references))

    def positions(self, given: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """One apart."""
        return 2 * given


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


def behind_text(network: nn.Module) -> Measure:
    """Lumina 2: the image follows the text without its padding, so that all texts of a call need one length."""
    of_image = patches("hidden_states", patch_size(network))

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


def channels_last(network: nn.Module) -> Measure:
    """Kandinsky: one token per patch of a video (batch, frames, height, width, channels), in raster order."""
    patch = patch_size(network)

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


def drawn_frames(network: nn.Module) -> Measure:
    """Kandinsky 6: the frame of a given image is behind those that are drawn, where the call has types of frames."""
    of_all = channels_last(network)

    def measure(arguments: Mapping[str, Any]) -> GridSize:
        frames, *plane = grid_size(of_all(arguments)).shape
        given = int(arguments.get("visual_token_type_ids") is not None)
        return GridSize((frames - given, *plane), given * prod(plane))

    return measure


def last_shape(network: nn.Module) -> Measure:
    """Qwen-Image 2.1: the last of `img_shapes` is the one drawn, and nothing is behind it.

    Examples:
        >>> last_shape(nn.Identity())({"img_shapes": [[(1, 9, 9), (1, 3, 4)]]})
        GridSize(shape=(3, 4), extra=0)
    """
    of_first = shapes_from("img_shapes")

    def measure(arguments: Mapping[str, Any]) -> GridSize:
        last_first = [sample[::-1] for sample in arguments["img_shapes"]]
        return GridSize(grid_size(of_first({"img_shapes": last_first})).shape, 0)

    return measure


def frames_first(network: nn.Module) -> Measure:
    """Latents (batch, frames, channels, height, width)."""
    return patches("hidden_states", patch_size(network), frames_first=True)


def without_kept_keys(network: nn.Module) -> Measure:
    """GLM-Image: its pipeline always passes caches; only a picture to edit writes keys to them, and reads them."""
    measure = patches("hidden_states", patch_size(network))

    def checked(arguments: Mapping[str, Any]) -> Shape | GridSize:
        modes = {cache.mode for cache in getattr(arguments.get("kv_caches"), "caches", ())} - {None, "skip"}
        for mode in modes:
            raise ValueError(KEPT_KEYS.format(f"kv_caches of mode={mode!r}"))
        return measure(arguments)

    return checked


CACHED_FRAMES = Reason(
    "AnyFlowFARTransformer3DModel attends to earlier frames through a mask over blocks of tokens or through cached "
    "keys, and merging would move the tokens of both"
)

MEASURES: dict[str, Callable[[nn.Module], Measure | Reason]] = {
    "AnyFlowFARTransformer3DModel": lambda network: CACHED_FRAMES,
    "AnyFlowTransformer3DModel": frames_first,
    "CogVideoXTransformer3DModel": frames_first,
    "ConsisIDTransformer3DModel": frames_first,
    "Flux2Transformer2DModel": lambda network: UncachedPositions("img_ids"),
    "Flux3Transformer2DModel": lambda network: HalvedPositions("img_ids"),
    "GlmImageTransformer2DModel": without_kept_keys,
    # It takes img_ids, too, of images that are in patches already, which is an error.
    "HiDreamImageTransformer2DModel": lambda network: patches("hidden_states", patch_size(network)),
    "Ideogram4Transformer2DModel": lambda network: PositionsAtEnd(),
    "Kandinsky5Transformer3DModel": channels_last,
    "Kandinsky6Transformer3DModel": drawn_frames,
    "Krea2Transformer2DModel": lambda network: PositionsAtEnd(),
    "Lumina2Transformer2DModel": behind_text,
    "QwenImage21Transformer2DModel": last_shape,
    "ZImageTransformer2DModel": lambda network: listed_images,
}
"""By the class of a network: how its grid is measured. Each network gets a measure of its own, since some remember."""
