"""Blocks of diffusers' transformers: what neither diffusers' registry nor their signatures say about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from catome_adapters.sites.layout import PerToken, Side

MODULATION = (PerToken("temb", axis=1, ndim=3, optional=True), PerToken("modulate_index", axis=1, optional=True))
"""Modulation may come with one row per token; mostly one row serves all."""

BOTH_ARGUMENTS = ("hidden_states", "encoder_hidden_states")
"""Self-attention that takes its tokens twice: for the queries, and for keys and values."""

HIDREAM_MASK = PerToken("hidden_states_masks", axis=1)

FIRST_FRAME = (
    "its modulation counts the tokens of the first frame, which merging moves; use scope='attention' or 'keys'"
)


@dataclass(frozen=True, kw_only=True)
class BlockFacts:
    """What is special about a class of blocks. Every field but `skipped` is a field of `BlockLayout`.

    Where the registry does not have the class, its tokens are the first argument and what it returns, unless `tokens`
    and `output` say otherwise.

    Attributes:
        text_side: Where joint attention has its text.
        skipped: Why the block is left alone.
    """

    tokens: str | None = None
    attention_arguments: tuple[str, ...] | None = None
    text_side: Side | None = None
    text: str | None = None
    output: int | None = None
    extra_side: Side | None = None
    per_token: tuple[PerToken, ...] | None = None
    shared: bool | None = None
    alone: bool | None = None
    refused: Mapping[str, str] | None = None
    skipped: str | None = None

    @property
    def layout(self) -> dict[str, Any]:
        """The fields that are set, as fields of `BlockLayout`."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "skipped"}
        return {name: value for name, value in values.items() if value is not None}


BLOCKS: dict[str, BlockFacts] = {
    "BriaTransformerBlock": BlockFacts(text_side="front", output=1, text="encoder_hidden_states"),
    "CogVideoXBlock": BlockFacts(text_side="front"),
    "CogView4TransformerBlock": BlockFacts(text_side="front"),
    "Cosmos3VLTextMoTDecoderLayer": BlockFacts(
        skipped="attends to text and image in two calls of attention of its own"
    ),
    "Flux2SingleTransformerBlock": BlockFacts(extra_side="front"),  # one sequence: text, image, reference images
    "Flux2TransformerBlock": BlockFacts(
        text_side="front",
        per_token=(PerToken("image_rotary_emb"), PerToken("temb_mod_img", 1, optional=True)),
    ),
    "FluxSingleTransformerBlock": BlockFacts(text_side="front"),
    "FluxTransformerBlock": BlockFacts(text_side="front"),
    # One sequence: image, padding, text. Its rotary rows have a batch. The network cuts off its last part after each.
    "HiDreamImageSingleTransformerBlock": BlockFacts(
        extra_side="back", shared=False, per_token=(PerToken("image_rotary_emb"), HIDREAM_MASK), alone=True
    ),
    "HiDreamImageTransformerBlock": BlockFacts(
        output=0,
        text="encoder_hidden_states",
        text_side="back",
        extra_side="back",  # padding, of an image that is no square
        shared=False,
        per_token=(PerToken("image_rotary_emb"), HIDREAM_MASK),
    ),
    "HunyuanImageSingleTransformerBlock": BlockFacts(text_side="back"),
    "HunyuanImageTransformerBlock": BlockFacts(text_side="back"),
    "HunyuanVideoSingleTransformerBlock": BlockFacts(text_side="back"),
    "HunyuanVideoTokenReplaceSingleTransformerBlock": BlockFacts(text_side="back", refused={"block": FIRST_FRAME}),
    "HunyuanVideoTokenReplaceTransformerBlock": BlockFacts(text_side="back", refused={"block": FIRST_FRAME}),
    "HunyuanVideoTransformerBlock": BlockFacts(text_side="back"),
    "JointTransformerBlock": BlockFacts(text_side="back"),
    "LTXVideoTransformerBlock": BlockFacts(shared=False),  # its rotary rows have a batch
    # One sequence: text, image. Its rotary rows have a batch.
    "Lumina2TransformerBlock": BlockFacts(
        attention_arguments=BOTH_ARGUMENTS, extra_side="front", shared=False, per_token=(PerToken("image_rotary_emb"),)
    ),
    "LuminaNextDiTBlock": BlockFacts(skipped="scales its scores by the number of its tokens, which merging changes"),
    "MochiTransformerBlock": BlockFacts(
        skipped="attends to every sample by itself, each with a text of its own length, so that its calls of attention "
        "cannot be recognized by the number of their keys"
    ),
    # One sequence: text and input images, the timestep, the image.
    "OmniGenBlock": BlockFacts(attention_arguments=BOTH_ARGUMENTS, extra_side="front"),
    "QwenImageTransformerBlock": BlockFacts(
        text_side="front", per_token=(PerToken("image_rotary_emb", entry=0), *MODULATION)
    ),
    "WanTransformerBlock": BlockFacts(
        shared=False, per_token=(PerToken("rotary_emb"), PerToken("temb", axis=1, ndim=4))
    ),
    # One sequence: image, text, padding. Its rotary rows have a batch, and the registry's name of its tokens is not x.
    "ZImageTransformerBlock": BlockFacts(
        tokens="x",
        extra_side="back",
        shared=False,
        per_token=(PerToken("freqs_cis"), PerToken("attn_mask", axis=1), PerToken("attention_mask", axis=1)),
    ),
}
"""By the name of the class. A new architecture of diffusers takes one row, or none."""
