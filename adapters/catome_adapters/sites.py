"""Where a model keeps its tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn


@dataclass(frozen=True, eq=False)
class MergeSite:
    """One transformer block whose tokens can be merged.

    Attributes:
        name: The block's path in the model.
        block: The transformer block, called with tokens (batch, tokens, channels) first.
        attention: Its self-attention, which takes `attention_mask`.
        host: The module around the block, called with an image (batch, channels, height, width): it tells the grid.
        level: How many times coarser than the model's input the grid is, per dimension.
        shape: Height and width of the grid at the model's default size; None if the model tells none.
    """

    name: str
    block: nn.Module
    attention: nn.Module
    host: nn.Module
    level: int
    shape: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class SkippedSite:
    """A place that is left alone, and why; `site` is set if tokens could have been merged there."""

    name: str
    reason: str
    site: MergeSite | None = None


def find_sites(model: Any) -> list[MergeSite]:
    """Find every self-attention block of a diffusers UNet, ControlNet, or the pipeline around one.

    Args:
        model: A pipeline (its `unet` is searched) or a model, compiled or not.

    Returns:
        The sites in the order of the model's modules; empty if there are none.

    Examples:
        >>> from catome_bench.pipeline import build_unet
        >>> for site in find_sites(build_unet())[:2]:
        ...     print(site.name, site.level)
        down_blocks.0.attentions.0.transformer_blocks.0 1
        down_blocks.1.attentions.0.transformer_blocks.0 2
    """
    return [place for place in survey(denoiser(model)) if isinstance(place, MergeSite)]


def denoiser(model_or_pipeline: Any) -> nn.Module:
    """The network inside a pipeline and inside torch.compile's wrapper.

    Raises:
        TypeError: If there is none.
    """
    model = getattr(model_or_pipeline, "unet", model_or_pipeline)
    model = getattr(model, "_orig_mod", model)
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{type(model_or_pipeline).__name__} is neither a torch.nn.Module nor a pipeline with a `unet`; "
            "pass the network that holds the transformer blocks"
        )
    return model


def survey(model: nn.Module) -> list[MergeSite | SkippedSite]:
    """Every transformer block of a UNet-shaped model: a site, or the reason why it is none."""
    places = [
        _judge(f"{path}.transformer_blocks.{index}".lstrip("."), block, host, _level(model, path))
        for path, host in model.named_modules()
        for index, block in enumerate(_blocks(host))
    ]
    size = _default_size(model)
    return [
        replace(place, shape=_coarser(size, place.level)) if isinstance(place, MergeSite) else place for place in places
    ]


def at_size(sites: Iterable[MergeSite], size: tuple[int, int]) -> list[MergeSite]:
    """The same sites for an input of this height and width instead of the model's default size.

    Examples:
        >>> from catome_bench.pipeline import build_unet
        >>> at_size(find_sites(build_unet()), (100, 50))[1].shape
        (50, 25)
    """
    return [replace(site, shape=_coarser(size, site.level)) for site in sites]


def _coarser(size: tuple[int, int] | None, level: int) -> tuple[int, int] | None:
    """Every halving rounds up, as the convolutions do."""
    return size and (-(-size[0] // level), -(-size[1] // level))


def _default_size(model: nn.Module) -> tuple[int, int] | None:
    size = getattr(getattr(model, "config", None), "sample_size", None)
    if isinstance(size, int):
        return (size, size)
    return (size[-2], size[-1]) if isinstance(size, (tuple, list)) else None


def _blocks(host: nn.Module) -> nn.ModuleList:
    blocks = getattr(host, "transformer_blocks", None)
    return blocks if isinstance(blocks, nn.ModuleList) else nn.ModuleList()


def _judge(name: str, block: nn.Module, host: nn.Module, level: int | None) -> MergeSite | SkippedSite:
    attention = getattr(block, "attn1", None)
    if attention is None:
        return SkippedSite(name, f"{type(block).__name__} has no self-attention `attn1`")
    if getattr(block, "only_cross_attention", False):
        return SkippedSite(name, "its `attn1` attends to text (only_cross_attention)")
    if level is None:
        return SkippedSite(name, "it is not inside down_blocks, mid_block or up_blocks: its grid is unknown")
    if "attentions" not in name.split("."):
        return SkippedSite(name, "it is not one of a block's `attentions`: it may attend over frames")
    return MergeSite(name, block, attention, host, level)


def _level(model: nn.Module, path: str) -> int | None:
    """Downsampling factor at a path such as `up_blocks.1.attentions.0`, from the samplers before it."""
    stage, _, rest = path.partition(".")
    index = rest.partition(".")[0]
    down = [_changes(block, "downsamplers") for block in getattr(model, "down_blocks", [])]
    up = [_changes(block, "upsamplers") for block in getattr(model, "up_blocks", [])]
    if stage == "down_blocks":
        return 2 ** sum(down[: int(index)])
    if stage == "up_blocks":
        return 2 ** (sum(down) - sum(up[: int(index)]))
    return 2 ** sum(down) if stage == "mid_block" else None


def _changes(block: nn.Module, samplers: str) -> bool:
    return getattr(block, samplers, None) is not None
