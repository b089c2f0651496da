"""Blocks of diffusers' transformers: what neither diffusers' registry nor their signatures say about them."""

from __future__ import annotations

from catome_adapters.architectures.facts import FRAME_MODULATION, MODULATION, ROTARY, BlockFacts, joint, single
from catome_adapters.sites.layout import PerToken

MASKED_TEXT = PerToken("attention_mask", axis=1, ndim=2)
"""A mask of text and image in one; self-attention gets a row and a column for each, which it gathers by itself."""
TOKENS_TWICE = ("hidden_states", "encoder_hidden_states")
"""Self-attention that takes its tokens for the queries, and again for keys and values."""

AUDIO_LOOKS = (
    "its audio attends to the tokens of the video, too, and would not know how many a slot stands for; use "
    "scope='attention' or 'keys'"
)
EXPERTS_CHOOSE = (
    "each of its experts chooses a share of the tokens, and would choose among slots as if each were one token; use "
    "scope='attention' or 'keys'"
)
FIRST_FRAME = (
    "its modulation counts the tokens of the first frame, which merging moves; use scope='attention' or 'keys'"
)
LINEAR = (
    "has linear attention, which sums over all tokens and calls no attention over keys, and convolves its tokens as an "
    "image"
)
TEXT_ALONE = "takes text alone, which has no grid"

BLOCKS: dict[str, BlockFacts] = {
    "AllegroTransformerBlock": BlockFacts(
        shared=False,
        # The second entry of the tuple has the position of every token.
        per_token=(PerToken("image_rotary_emb", axis=1, entry=1), PerToken("attention_mask", axis=2)),
    ),
    "AnyFlowTransformerBlock": BlockFacts(shared=False, per_token=(PerToken("rotary_emb", axis=2), FRAME_MODULATION)),
    "AuraFlowJointTransformerBlock": joint("front", output=1),
    "AuraFlowSingleTransformerBlock": single("front"),
    "BriaFiboSingleTransformerBlock": single("front"),
    "BriaFiboTransformerBlock": joint("front", output=1),
    "BriaTransformerBlock": joint("front", output=1),
    "ChromaSingleTransformerBlock": single("front", per_token=(*ROTARY, MASKED_TEXT)),
    "ChromaTransformerBlock": joint("front", output=1, per_token=(*ROTARY, MASKED_TEXT)),
    "CogVideoXBlock": BlockFacts(text_side="front"),
    "CogView3PlusTransformerBlock": joint("front"),
    "CogView4TransformerBlock": BlockFacts(text_side="front"),
    "ConsisIDBlock": joint("front"),
    "Cosmos3VLTextMoTDecoderLayer": BlockFacts(
        skipped="attends to text and image in two calls of attention of its own"
    ),
    "CosmosTransformerBlock": BlockFacts(
        per_token=(
            *ROTARY,
            *(PerToken(name, axis=1, ndim=3) for name in ("embedded_timestep", "temb")),
            *(PerToken(name, axis=1) for name in ("extra_pos_emb", "controlnet_residual")),
        )
    ),
    "EasyAnimateTransformerBlock": joint("front"),
    "ErnieImageSharedAdaLNBlock": single(
        "back",
        tokens_first=True,
        shared=False,
        per_token=(
            *(PerToken(name, axis=1) for name in ("rotary_pos_emb", "image_rotary_emb")),
            PerToken("temb", axis=0, ndim=3),
        ),
    ),
    "Flux2SingleTransformerBlock": single("front"),
    "Flux2TransformerBlock": BlockFacts(
        text_side="front", per_token=(*ROTARY, PerToken("temb_mod_img", axis=1, optional=True))
    ),
    "Flux3ModeTransformerBlock": BlockFacts(
        skipped="is one class for text, image and reference images, each of which it attends to alone"
    ),
    "Flux3SingleTransformerBlock": joint("front", output=1, per_token=(*ROTARY, PerToken("temb_mod", axis=1))),
    "FluxSingleTransformerBlock": BlockFacts(text_side="front"),
    "FluxTransformerBlock": BlockFacts(text_side="front"),
    "GlmImageTransformerBlock": joint("front"),
    "HeliosTransformerBlock": single(
        "front",
        shared=False,
        per_token=(PerToken("rotary_emb"), FRAME_MODULATION, PerToken("original_context_length")),
    ),
    # The network cuts off the last part of the sequence after each.
    "HiDreamImageSingleTransformerBlock": single(
        "back", shared=False, per_token=(*ROTARY, PerToken("hidden_states_masks", axis=1)), alone=True
    ),
    "HiDreamImageTransformerBlock": joint(
        "back", output=0, extra_side="back", shared=False, per_token=(*ROTARY, PerToken("hidden_states_masks", axis=1))
    ),
    # The network keeps what its first half returns, for the second half.
    "HunyuanDiTBlock": BlockFacts(per_token=(*ROTARY, PerToken("skip")), alone=True),
    "HunyuanImageSingleTransformerBlock": BlockFacts(text_side="back"),
    "HunyuanImageTransformerBlock": BlockFacts(text_side="back"),
    "HunyuanVideo15TransformerBlock": joint("back"),
    "HunyuanVideoSingleTransformerBlock": BlockFacts(text_side="back"),
    "HunyuanVideoTokenReplaceSingleTransformerBlock": BlockFacts(text_side="back", refused={"block": FIRST_FRAME}),
    "HunyuanVideoTokenReplaceTransformerBlock": BlockFacts(text_side="back", refused={"block": FIRST_FRAME}),
    "HunyuanVideoTransformerBlock": BlockFacts(text_side="back"),
    "Ideogram4TransformerBlock": single(
        "front", shared=False, per_token=(*ROTARY, PerToken("adaln_input", axis=1, optional=True))
    ),
    "JointTransformerBlock": BlockFacts(text_side="back"),
    "Kandinsky5TransformerDecoderBlock": BlockFacts(shared=False, per_token=(PerToken("rope"), PerToken("rotary_emb"))),
    "Kandinsky5TransformerEncoderBlock": BlockFacts(skipped=TEXT_ALONE),
    "Kandinsky6FusedTransformerDecoderBlock": BlockFacts(
        shared=True, extra_side="back", per_token=(PerToken("rotary_emb", axis=0),), refused={"block": AUDIO_LOOKS}
    ),
    "Kandinsky6SRTransformerBlock": BlockFacts(
        skipped="attends between blocks of 64 tokens, through a sparse mask that its own kernel reads"
    ),
    "Kandinsky6TransformerEncoderBlock": BlockFacts(skipped=TEXT_ALONE),
    "Krea2TransformerBlock": single("front"),
    "LTX2VideoTransformerBlock": single(
        "back",
        output=0,
        shared=False,
        # A mask of self-attention has rows and columns.
        per_token=(
            PerToken("query_rotary_emb", axis=-2),
            *(PerToken("attention_mask", axis=axis) for axis in (1, 2)),
        ),
        bypass="all_perturbed",
        refused={"block": AUDIO_LOOKS},
    ),
    "LTXVideoTransformerBlock": BlockFacts(shared=False),
    "LongCatImageSingleTransformerBlock": joint("front", output=1),
    "LongCatImageTransformerBlock": joint("front", output=1),
    "Lumina2TransformerBlock": single("front", attention_arguments=TOKENS_TWICE, shared=False, per_token=ROTARY),
    "LuminaNextDiTBlock": BlockFacts(skipped="scales its scores by the number of its tokens, which merging changes"),
    "MochiTransformerBlock": BlockFacts(
        skipped="attends to every sample by itself, each with a text of its own length, so that its calls of attention "
        "cannot be recognized by the number of their keys"
    ),
    "MotifVideoSingleTransformerBlock": BlockFacts(text_side="back"),
    "MotifVideoTransformerBlock": BlockFacts(text_side="back"),
    "NucleusMoEImageTransformerBlock": joint(
        "back", per_token=(PerToken("image_rotary_emb", entry=0), MASKED_TEXT), refused={"block": EXPERTS_CHOOSE}
    ),
    "OmniGenBlock": single("front", attention_arguments=TOKENS_TWICE),
    "OvisImageSingleTransformerBlock": joint("front", output=1),
    "OvisImageTransformerBlock": joint("front", output=1),
    "PRXBlock": joint("front", shared=False, per_token=(PerToken("image_rotary_emb", axis=2),)),
    "PixArtAlphaTextProjection": BlockFacts(skipped="projects what conditions the blocks, and no tokens of an image"),
    "QwenImage21TransformerBlock": single(
        "front",
        cached="layer_cache",
        per_token=(PerToken("rotary_emb"), PerToken("target_token_mask"), PerToken("key_valid", axis=1)),
    ),
    "QwenImageTransformerBlock": BlockFacts(
        text_side="front", per_token=(PerToken("image_rotary_emb", entry=0), *MODULATION)
    ),
    "SanaTransformerBlock": BlockFacts(skipped=LINEAR),
    "SanaVideoTransformerBlock": BlockFacts(skipped=LINEAR),
    "SkyReelsV2TransformerBlock": BlockFacts(
        shared=False, per_token=(PerToken("rotary_emb"), PerToken("temb", axis=2, ndim=4))
    ),
    "WanTransformerBlock": BlockFacts(shared=False, per_token=(PerToken("rotary_emb"), FRAME_MODULATION)),
    # The registry gives its tokens a name that they do not have.
    "ZImageTransformerBlock": single(
        "back",
        tokens="x",
        shared=False,
        per_token=(PerToken("freqs_cis"), PerToken("attn_mask", axis=1), PerToken("attention_mask", axis=1)),
    ),
}
"""By the name of the class. `shared=False`: its rotary rows have a batch. A new class takes one row, or none."""
