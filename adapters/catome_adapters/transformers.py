"""Where diffusers' transformers keep their tokens: DiT, joint attention, single streams, video."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from inspect import signature
from types import MappingProxyType
from typing import Any

from torch import nn

from catome_adapters.arguments import Signature
from catome_adapters.grids import Measure, PositionGrid, Shape, patches, told_shapes, told_sizes
from catome_adapters.layouts import BlockLayout, Follow, Side
from catome_adapters.sites import MergeSite, SkippedSite

ATTENTIONS = ("attn1", "attn")
ROTARY = ("image_rotary_emb", "rotary_emb", "freqs_cis")
PER_TOKEN = (Follow("temb", axis=1, ndim=3, optional=True), Follow("modulate_index", axis=1, optional=True))
"""Modulation may come with a row for every token; mostly one row serves all."""

TEXT_SIDES: Mapping[str, Side] = MappingProxyType(
    {
        "FluxTransformerBlock": "front",
        "FluxSingleTransformerBlock": "front",
        "Flux2TransformerBlock": "front",
        "BriaTransformerBlock": "front",
        "CogVideoXBlock": "front",
        "CogView4TransformerBlock": "front",
        "QwenImageTransformerBlock": "front",
        "JointTransformerBlock": "back",
        "HunyuanVideoTransformerBlock": "back",
        "HunyuanVideoSingleTransformerBlock": "back",
        "HunyuanVideoTokenReplaceTransformerBlock": "back",
        "HunyuanVideoTokenReplaceSingleTransformerBlock": "back",
        "HunyuanImageTransformerBlock": "back",
        "HunyuanImageSingleTransformerBlock": "back",
    }
)
"""Where joint attention has its text: the one thing about a block that neither diffusers nor its signature tells."""

FIRST_FRAME = (
    "its modulation counts the tokens of the first frame, which merging moves; use scope='attention' or 'keys'"
)
# A batch of rotary rows: nothing needs to be shared.
OWN_ROWS = {"shared": False}
EXCEPTIONS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "WanTransformerBlock": OWN_ROWS | {"follows": (Follow("rotary_emb"), Follow("temb", axis=1, ndim=4))},
        "LTXVideoTransformerBlock": OWN_ROWS,
        "QwenImageTransformerBlock": {"follows": (Follow("image_rotary_emb", entry=0), *PER_TOKEN)},
        # diffusers tells that it returns the tokens first, and alone; it does not.
        "BriaTransformerBlock": {"output": 1, "text": "encoder_hidden_states"},
        "Flux2TransformerBlock": {"follows": (Follow("image_rotary_emb"), Follow("temb_mod_img", 1, optional=True))},
        # One sequence: text, image, reference images.
        "Flux2SingleTransformerBlock": {"rest_side": "front"},
        "HunyuanVideoTokenReplaceTransformerBlock": {"refused": {"block": FIRST_FRAME}},
        "HunyuanVideoTokenReplaceSingleTransformerBlock": {"refused": {"block": FIRST_FRAME}},
    }
)
"""Where a block differs from what its signature suggests."""


REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "MochiTransformerBlock": "attends to every sample by itself, each with a text of its own length, so that "
        "attention cannot be told of slots by the length of its keys",
        "Cosmos3VLTextMoTDecoderLayer": "attends to text and image in two calls of attention of its own",
    }
)
"""Blocks whose arguments diffusers tells, but that are not enough to merge."""


def survey_transformer(network: nn.Module) -> list[MergeSite | SkippedSite]:
    """Every transformer block of a network: a site, or the reason why it is none."""
    measure, shape = measure_for(network), default_shape(network)
    return [
        _judge(f"{path}.{index}", block, network, measure, shape)
        for path, blocks in network.named_modules()
        if isinstance(blocks, nn.ModuleList) and path.rpartition(".")[2].endswith(("blocks", "layers"))
        for index, block in enumerate(blocks)
    ]


def layout_of(block: nn.Module) -> BlockLayout | str:
    """How a block takes its tokens, from diffusers' own registry and its signature; or why that is unknown."""
    name = type(block).__name__
    if name in REFUSED:
        return f"{name} {REFUSED[name]}"
    known = _told(type(block))
    if known is None:
        return f"{name} is not among the blocks whose arguments diffusers tells (TransformerBlockRegistry)"
    joint = known.return_encoder_hidden_states_index is not None
    if joint and name not in TEXT_SIDES:
        return f"{name} attends to text and image together, and on which side its text lies is unknown"
    names = Signature.of(block).names
    rotary = tuple(Follow(one) for one in ROTARY if one in names or one == "image_rotary_emb")
    layout = BlockLayout(
        tokens=known.hidden_states_argument_name,
        output=known.return_hidden_states_index,
        text=known.encoder_hidden_states_argument_name if joint else None,
        text_side=TEXT_SIDES.get(name, "front"),
        follows=(*rotary, *PER_TOKEN),
        shared=any(one in names for one in ROTARY),
        keys_apart=name == "BasicTransformerBlock",
    )
    return replace(layout, **EXCEPTIONS.get(name, {}))


def _told(kind: type[nn.Module]) -> Any:
    """What diffusers tells of a class of blocks, or of one that it has copied, with its name, into another file."""
    from diffusers.hooks._helpers import TransformerBlockRegistry

    TransformerBlockRegistry._register()
    known = TransformerBlockRegistry._registry
    copied = (
        one for one in known if one.__name__ == kind.__name__ and signature(one.forward) == signature(kind.forward)
    )
    return known.get(kind) or known.get(next(copied, kind))


def measure_for(network: nn.Module) -> Measure | str:
    """How the network's arguments tell the grid; or what was looked for."""
    names, patch = Signature.of(network).names, patch_size(network)
    if "img_ids" in names:
        return PositionGrid("img_ids")
    if "img_shapes" in names:
        return told_shapes("img_shapes")
    if {"num_frames", "height", "width"} <= set(names):
        return told_sizes("num_frames", "height", "width")
    if "hidden_states" in names and patch:
        # CogVideoX, alone among them, is (batch, frames, channels, height, width).
        return patches("hidden_states", patch, frames_first=hasattr(_config(network), "sample_frames"))
    return (
        f"the call of {type(network).__name__} tells no grid: looked for img_ids, img_shapes, (num_frames, height, "
        "width), or hidden_states and a patch_size in its config"
    )


def patch_size(network: nn.Module) -> Shape:
    """Size of a patch from the config: (height, width) or (frames, height, width); empty if it tells none."""
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


def _judge(
    name: str, block: nn.Module, network: nn.Module, measure: Measure | str, shape: Shape | None
) -> MergeSite | SkippedSite:
    layout = layout_of(block)
    attention = next((getattr(block, one) for one in ATTENTIONS if hasattr(block, one)), None)
    if isinstance(layout, str):
        return SkippedSite(name, layout)
    if isinstance(measure, str):
        return SkippedSite(name, measure)
    if attention is None:
        return SkippedSite(name, f"{type(block).__name__} has no self-attention {' or '.join(ATTENTIONS)}")
    if isinstance(measure, PositionGrid) or "img_shapes" in Signature.of(network).names:
        layout = replace(layout, rest_side=layout.rest_side or "back")
    # Stable Diffusion 3.5 attends to the image once more, apart from the text.
    also: Any = (block.attn2,) if getattr(block, "use_dual_attention", False) else ()
    return MergeSite(name, block, attention, network, 1, shape, measure, layout, also=also)


def _config(network: nn.Module) -> Any:
    return getattr(network, "config", None)
