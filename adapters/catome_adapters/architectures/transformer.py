"""Where diffusers' transformers keep their tokens: DiT, joint attention, single streams, video."""

from __future__ import annotations

from dataclasses import replace
from inspect import signature
from typing import Any

from torch import nn

from catome_adapters.architectures.blocks import BLOCKS
from catome_adapters.architectures.configured import default_shape
from catome_adapters.architectures.facts import MODULATION
from catome_adapters.architectures.grids import measure_for
from catome_adapters.sites.call import Signature
from catome_adapters.sites.grid import Measure, PositionGrid, Shape
from catome_adapters.sites.layout import BlockLayout, PerToken
from catome_adapters.sites.site import MergeSite, Reason, SkippedSite

ATTENTIONS = ("attn1", "attn", "attention", "self_attn", "self_attention", "video_dec_block.self_attention")
"""What blocks call their self-attention."""
HISTORY = "latents_clean"
"""What a network calls the frames of before, whose tokens it puts in front of those that it draws."""
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
    facts, known = BLOCKS.get(name), _registered(type(block))
    if facts is not None and facts.skipped:
        return Reason(f"{name} {facts.skipped}")
    if known is None and facts is None:
        return Reason(
            f"{name} is neither among the blocks that are known here nor in diffusers' TransformerBlockRegistry"
        )
    names = Signature.of(block).names
    rotary = tuple(PerToken(one) for one in ROTARY if one in names or one == "image_rotary_emb")
    layout = BlockLayout(per_token=(*rotary, *MODULATION), shared=any(one in names for one in ROTARY))
    if known is not None:
        layout = replace(layout, **_from_registry(known), takes_keys=name == "BasicTransformerBlock")
    if facts is not None:
        layout = replace(layout, **facts.layout)
    if layout.text is not None and (facts is None or facts.text_side is None):
        return Reason(f"{name} attends to text and image together, and on which side its text lies is unknown")
    return layout


def _from_registry(known: Any) -> dict[str, Any]:
    joint = known.return_encoder_hidden_states_index is not None
    return {
        "tokens": known.hidden_states_argument_name,
        "output": known.return_hidden_states_index,
        "text": known.encoder_hidden_states_argument_name if joint else None,
    }


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


def _site_or_reason(
    name: str, block: nn.Module, network: nn.Module, grid_of: Measure | Reason, shape: Shape | None
) -> MergeSite | SkippedSite:
    # HiDream's blocks pass everything on to one inside.
    inside = block.get_submodule("block") if type(block).__name__ == "HiDreamBlock" else block
    layout, parts = layout_of(inside), dict(inside.named_modules(remove_duplicate=False))
    attention = next((parts[one] for one in ATTENTIONS if one in parts), None)
    if isinstance(layout, Reason):
        return SkippedSite(name, layout)
    if isinstance(grid_of, Reason):
        return SkippedSite(name, grid_of)
    if attention is None:
        return SkippedSite(name, f"{type(block).__name__} has no self-attention {' or '.join(ATTENTIONS)}")
    names = Signature.of(network).names
    if isinstance(grid_of, PositionGrid) or "img_shapes" in names:
        layout = replace(layout, extra_side=layout.extra_side or "back")
    if HISTORY in names:
        layout = replace(layout, extra_side="front")
    # The decoder of Motif-Video takes other tokens than the blocks before it return.
    decoder: Any = getattr(network, "num_decoder_layers", 0)
    if decoder and block in [*network.get_submodule("single_transformer_blocks").children()][-decoder:]:
        layout = replace(layout, alone=True)
    # Stable Diffusion 3.5 attends to the image once more, apart from the text.
    others: Any = (block.attn2,) if getattr(block, "use_dual_attention", False) else ()
    return MergeSite(
        name, block, attention, network, shape=shape, grid_of=grid_of, layout=layout, other_attentions=others
    )
