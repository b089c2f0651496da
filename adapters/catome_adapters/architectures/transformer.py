"""Where diffusers' transformers keep their tokens: DiT, joint attention, single streams, video."""

from __future__ import annotations

from dataclasses import replace
from inspect import signature
from typing import Any

from torch import nn

from catome_adapters.architectures.blocks import BLOCKS, MODULATION, BlockFacts
from catome_adapters.sites.call import Signature
from catome_adapters.sites.grid import Measure, PositionGrid, Shape, patches, shapes_from, sizes_from
from catome_adapters.sites.layout import BlockLayout, PerToken
from catome_adapters.sites.site import MergeSite, Reason, SkippedSite

ATTENTIONS = ("attn1", "attn")
ROTARY = ("image_rotary_emb", "rotary_emb", "freqs_cis")


def find_in_transformer(network: nn.Module) -> list[MergeSite | SkippedSite]:
    """Every transformer block of a network: a site, or why it is skipped."""
    grid_of, shape = measure_for(network), default_shape(network)
    return [
        _site_or_reason(f"{path}.{index}", block, network, grid_of, shape)
        for path, blocks in network.named_modules()
        if isinstance(blocks, nn.ModuleList) and path.rpartition(".")[2].endswith(("blocks", "layers"))
        for index, block in enumerate(blocks)
    ]


def layout_of(block: nn.Module) -> BlockLayout | Reason:
    """How a block takes its tokens, from diffusers' own registry and its signature; or why that is unknown."""
    name = type(block).__name__
    facts = BLOCKS.get(name, BlockFacts())
    if facts.skipped:
        return Reason(f"{name} {facts.skipped}")
    known = _registered(type(block))
    if known is None:
        return Reason(f"{name} is not among the blocks whose arguments are in diffusers' TransformerBlockRegistry")
    joint = known.return_encoder_hidden_states_index is not None
    if joint and facts.text_side is None:
        return Reason(f"{name} attends to text and image together, and on which side its text lies is unknown")
    names = Signature.of(block).names
    rotary = tuple(PerToken(one) for one in ROTARY if one in names or one == "image_rotary_emb")
    layout = BlockLayout(
        tokens=known.hidden_states_argument_name,
        output=known.return_hidden_states_index,
        text=known.encoder_hidden_states_argument_name if joint else None,
        per_token=(*rotary, *MODULATION),
        shared=any(one in names for one in ROTARY),
        takes_keys=name == "BasicTransformerBlock",
    )
    return replace(layout, **facts.layout)


def _registered(kind: type[nn.Module]) -> Any:
    """Diffusers' entry for a class of blocks, or for one that it has copied, with its name, into another file."""
    from diffusers.hooks._helpers import TransformerBlockRegistry

    # pyright: ignore on both lines: the registry has no public list of what it holds.
    TransformerBlockRegistry._register()  # pyright: ignore[reportPrivateUsage]
    known = TransformerBlockRegistry._registry  # pyright: ignore[reportPrivateUsage]
    copied = (
        one for one in known if one.__name__ == kind.__name__ and signature(one.forward) == signature(kind.forward)
    )
    return known.get(kind) or known.get(next(copied, kind))


def measure_for(network: nn.Module) -> Measure | Reason:
    """How the network's arguments give the grid; or what was looked for."""
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


def _site_or_reason(
    name: str, block: nn.Module, network: nn.Module, grid_of: Measure | Reason, shape: Shape | None
) -> MergeSite | SkippedSite:
    layout = layout_of(block)
    attention = next((getattr(block, one) for one in ATTENTIONS if hasattr(block, one)), None)
    if isinstance(layout, Reason):
        return SkippedSite(name, layout)
    if isinstance(grid_of, Reason):
        return SkippedSite(name, grid_of)
    if attention is None:
        return SkippedSite(name, f"{type(block).__name__} has no self-attention {' or '.join(ATTENTIONS)}")
    if isinstance(grid_of, PositionGrid) or "img_shapes" in Signature.of(network).names:
        layout = replace(layout, extra_side=layout.extra_side or "back")
    # Stable Diffusion 3.5 attends to the image once more, apart from the text.
    others: Any = (block.attn2,) if getattr(block, "use_dual_attention", False) else ()
    return MergeSite(
        name, block, attention, network, shape=shape, grid_of=grid_of, layout=layout, other_attentions=others
    )


def _config(network: nn.Module) -> Any:
    return getattr(network, "config", None)
