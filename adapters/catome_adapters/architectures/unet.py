"""Where UNets keep their tokens: Stable Diffusion 1, 2 and XL, ControlNets, and others of their shape."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from catome_adapters.sites.layout import BlockLayout
from catome_adapters.sites.site import MergeSite, SkippedSite

LAYOUT = BlockLayout(tokens="hidden_states", takes_keys=True)


def is_unet(model: nn.Module) -> bool:
    """Whether this is shaped like a UNet."""
    return hasattr(model, "down_blocks")


def find_in_unet(model: nn.Module) -> list[MergeSite | SkippedSite]:
    """Every transformer block of a UNet-shaped model: a site, or why it is skipped."""
    candidates = [
        _site_or_reason(f"{path}.transformer_blocks.{index}".lstrip("."), block, host, level_at(model, path))
        for path, host in model.named_modules()
        for index, block in enumerate(_blocks(host))
    ]
    size = _default_size(model)
    return [replace(one, shape=_coarser(size, one.level)) if isinstance(one, MergeSite) else one for one in candidates]


def at_size(sites: Iterable[MergeSite], size: tuple[int, int]) -> list[MergeSite]:
    """The same sites for an input of this height and width instead of the model's default size.

    Examples:
        >>> block = nn.TransformerEncoderLayer(8, 2, batch_first=True)
        >>> at_size([MergeSite("block", block, block.self_attn, block, level=2)], (100, 50))[0].shape
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


def _site_or_reason(name: str, block: nn.Module, host: nn.Module, level: int | None) -> MergeSite | SkippedSite:
    attention = getattr(block, "attn1", None)
    if attention is None:
        return SkippedSite(name, f"{type(block).__name__} has no self-attention `attn1`")
    if getattr(block, "only_cross_attention", False):
        return SkippedSite(name, "its `attn1` attends to text (only_cross_attention)")
    if level is None:
        return SkippedSite(name, "it is not inside down_blocks, mid_block or up_blocks: its grid is unknown")
    if "attentions" not in name.split("."):
        return SkippedSite(name, "it is not one of a block's `attentions`: it may attend over frames")
    return MergeSite(name, block, attention, host, level=level, layout=LAYOUT, looks_near=False)


def level_at(model: nn.Module, path: str) -> int | None:
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
