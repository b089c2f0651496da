"""Blocks of diffusers' transformers: what neither diffusers' registry nor their signatures say about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from catome_adapters.sites.layout import PerToken, Side

MODULATION = (PerToken("temb", axis=1, ndim=3, optional=True), PerToken("modulate_index", axis=1, optional=True))
"""Modulation may come with one row per token; mostly one row serves all."""

FIRST_FRAME = (
    "its modulation counts the tokens of the first frame, which merging moves; use scope='attention' or 'keys'"
)
HEARD = (
    "its audio attends to the tokens of the video, too, and would not know how many a slot stands for; use "
    "scope='attention' or 'keys'"
)
TEXT_ALONE = "takes text alone, which has no grid"

LINEAR = (
    "has linear attention, which sums over all tokens and calls no attention over keys, and convolves its tokens as an "
    "image"
)
EXPERTS_CHOOSE = (
    "each of its experts chooses a share of the tokens, and would choose among slots as if each were one token; use "
    "scope='attention' or 'keys'"
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
    text_side: Side | None = None
    text: str | None = None
    cached: str | None = None
    tokens_first: bool | None = None
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


MASKED_TEXT = PerToken("attention_mask", axis=1, ndim=2)
"""A mask of text and image in one; self-attention gets a row and a column for each, which it gathers by itself."""


BLOCKS: dict[str, BlockFacts] = {
    "AuraFlowJointTransformerBlock": BlockFacts(text_side="front", output=1, text="encoder_hidden_states"),
    "AuraFlowSingleTransformerBlock": BlockFacts(extra_side="front"),  # one sequence: registers, text, image
    # The second half of its nested tuple has the position of every token.
    "AllegroTransformerBlock": BlockFacts(
        shared=False, per_token=(PerToken("image_rotary_emb", axis=1, entry=1), PerToken("attention_mask", axis=2))
    ),
    "AnyFlowTransformerBlock": BlockFacts(
        shared=False, per_token=(PerToken("rotary_emb", axis=2), PerToken("temb", axis=1, ndim=4))
    ),
    "BriaFiboSingleTransformerBlock": BlockFacts(extra_side="front"),  # one sequence: text, image, reference images
    "BriaFiboTransformerBlock": BlockFacts(text_side="front", output=1, text="encoder_hidden_states"),
    "BriaTransformerBlock": BlockFacts(text_side="front", output=1, text="encoder_hidden_states"),
    "ChromaSingleTransformerBlock": BlockFacts(
        extra_side="front", per_token=(PerToken("image_rotary_emb"), MASKED_TEXT)
    ),
    "ChromaTransformerBlock": BlockFacts(
        text_side="front",
        output=1,
        text="encoder_hidden_states",
        per_token=(PerToken("image_rotary_emb"), MASKED_TEXT),
    ),
    "CogVideoXBlock": BlockFacts(text_side="front"),
    "CogView3PlusTransformerBlock": BlockFacts(text_side="front", text="encoder_hidden_states"),
    "CogView4TransformerBlock": BlockFacts(text_side="front"),
    "ConsisIDBlock": BlockFacts(text_side="front", text="encoder_hidden_states"),
    "Cosmos3VLTextMoTDecoderLayer": BlockFacts(
        skipped="attends to text and image in two calls of attention of its own"
    ),
    "ErnieImageSharedAdaLNBlock": BlockFacts(  # one sequence: image, text
        text_side="back",
        extra_side="back",
        tokens_first=True,
        shared=False,
        per_token=(
            PerToken("rotary_pos_emb", axis=1),
            PerToken("image_rotary_emb", axis=1),
            PerToken("temb", axis=0, ndim=3),
        ),
    ),
    "EasyAnimateTransformerBlock": BlockFacts(text_side="front", text="encoder_hidden_states"),
    "Flux2SingleTransformerBlock": BlockFacts(extra_side="front"),  # one sequence: text, image, reference images
    "Flux2TransformerBlock": BlockFacts(
        text_side="front",
        per_token=(PerToken("image_rotary_emb"), PerToken("temb_mod_img", 1, optional=True)),
    ),
    "Flux3ModeTransformerBlock": BlockFacts(
        skipped="is one class for text, image and reference images, each of which it attends to alone"
    ),
    "Flux3SingleTransformerBlock": BlockFacts(
        text_side="front",
        output=1,
        text="encoder_hidden_states",
        per_token=(PerToken("image_rotary_emb"), PerToken("temb_mod", 1)),
    ),
    "FluxSingleTransformerBlock": BlockFacts(text_side="front"),
    "FluxTransformerBlock": BlockFacts(text_side="front"),
    "GlmImageTransformerBlock": BlockFacts(text_side="front", text="encoder_hidden_states"),
    "HunyuanDiTBlock": BlockFacts(per_token=(PerToken("image_rotary_emb"), PerToken("skip")), alone=True),
    "HeliosTransformerBlock": BlockFacts(
        extra_side="front",  # earlier frames, each part at a coarser scale
        shared=False,
        per_token=(PerToken("rotary_emb"), PerToken("temb", axis=1, ndim=4), PerToken("original_context_length")),
    ),
    "HunyuanImageSingleTransformerBlock": BlockFacts(text_side="back"),
    "HunyuanImageTransformerBlock": BlockFacts(text_side="back"),
    "HunyuanVideoSingleTransformerBlock": BlockFacts(text_side="back"),
    "HunyuanVideoTokenReplaceSingleTransformerBlock": BlockFacts(text_side="back", refused={"block": FIRST_FRAME}),
    "HunyuanVideoTokenReplaceTransformerBlock": BlockFacts(text_side="back", refused={"block": FIRST_FRAME}),
    "HunyuanVideoTransformerBlock": BlockFacts(text_side="back"),
    "Ideogram4TransformerBlock": BlockFacts(  # one sequence: padding, text, image
        extra_side="front",
        shared=False,  # its rotary rows have a batch
        per_token=(PerToken("image_rotary_emb"), PerToken("adaln_input", 1, optional=True)),
    ),
    "JointTransformerBlock": BlockFacts(text_side="back"),
    "JoyImageTransformerBlock": BlockFacts(
        text_side="back",
        text="encoder_hidden_states",
        output=0,
        extra_side="back",
        per_token=(PerToken("image_rotary_emb", entry=0),),
    ),
    "Kandinsky5TransformerDecoderBlock": BlockFacts(shared=False, per_token=(PerToken("rope"), PerToken("rotary_emb"))),
    "Kandinsky5TransformerEncoderBlock": BlockFacts(skipped=TEXT_ALONE),
    "Kandinsky6FusedTransformerDecoderBlock": BlockFacts(
        shared=True, per_token=(PerToken("rotary_emb", axis=0),), refused={"block": HEARD}
    ),
    "Kandinsky6SRTransformerBlock": BlockFacts(
        skipped="attends between blocks of 64 tokens, through a sparse mask that its own kernel reads"
    ),
    "Kandinsky6TransformerEncoderBlock": BlockFacts(skipped=TEXT_ALONE),
    "Krea2TransformerBlock": BlockFacts(extra_side="front"),  # one sequence: text, image
    "LTXVideoTransformerBlock": BlockFacts(shared=False),  # its rotary rows have a batch
    "LongCatImageSingleTransformerBlock": BlockFacts(text_side="front", output=1, text="encoder_hidden_states"),
    "LongCatImageTransformerBlock": BlockFacts(text_side="front", output=1, text="encoder_hidden_states"),
    "MochiTransformerBlock": BlockFacts(
        skipped="attends to every sample by itself, each with a text of its own length, so that its calls of attention "
        "cannot be recognized by the number of their keys"
    ),
    "NucleusMoEImageTransformerBlock": BlockFacts(
        text_side="back",
        text="encoder_hidden_states",
        per_token=(PerToken("image_rotary_emb", entry=0), PerToken("attention_mask", axis=1, ndim=2)),
        refused={"block": EXPERTS_CHOOSE},
    ),
    "QwenImage21TransformerBlock": BlockFacts(  # one sequence: text, reference images, image
        extra_side="front",
        cached="layer_cache",
        per_token=(PerToken("rotary_emb"), PerToken("target_token_mask"), PerToken("key_valid", axis=1)),
    ),
    # Its rotary rows are (batch, 1, tokens, ...); text is among the keys alone.
    "PRXBlock": BlockFacts(
        text_side="front",
        text="encoder_hidden_states",
        shared=False,
        per_token=(PerToken("image_rotary_emb", axis=2),),
    ),
    "PixArtAlphaTextProjection": BlockFacts(skipped="projects what conditions the blocks, and no tokens of an image"),
    "OvisImageSingleTransformerBlock": BlockFacts(text_side="front", output=1, text="encoder_hidden_states"),
    "OvisImageTransformerBlock": BlockFacts(text_side="front", output=1, text="encoder_hidden_states"),
    "QwenImageTransformerBlock": BlockFacts(
        text_side="front", per_token=(PerToken("image_rotary_emb", entry=0), *MODULATION)
    ),
    "SanaTransformerBlock": BlockFacts(skipped=LINEAR),
    "SanaVideoTransformerBlock": BlockFacts(skipped=LINEAR),
    "WanTransformerBlock": BlockFacts(
        shared=False, per_token=(PerToken("rotary_emb"), PerToken("temb", axis=1, ndim=4))
    ),
}
"""By the name of the class. A new architecture of diffusers takes one row, or none."""
