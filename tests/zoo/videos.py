"""Transformers that take a video, of latents or as tokens."""

from dataclasses import replace
from functools import partial

import torch
from diffusers import (
    ChronoEditTransformer3DModel,
    CogVideoXTransformer3DModel,
    HunyuanVideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    WanTransformer3DModel,
)
from torch import Tensor

from zoo.architecture import (
    Architecture,
    Arguments,
    Size,
    area,
    halved,
    image_sample,
    mask_last,
    pooled_inputs,
    text_inputs,
    token_sample,
    whole,
)
from zoo.noise import noise

CLIPS = ((3, 12, 12), (2, 10, 14))
LATENTS = {"sizes": CLIPS, "sample": image_sample(4), "grid": halved}


def later_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    """The first frame is given: its tokens are at another time."""
    frames, *frame = halved(size)
    later = torch.arange(frames).gt(0).mul(500).repeat_interleave(area(tuple(frame)))
    return text_inputs(sample, size, text) | {"timestep": later.expand(len(sample), -1)}


def ltx_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    sizes = dict(zip(("num_frames", "height", "width"), size, strict=True))
    return text_inputs(sample, size, text) | {"encoder_attention_mask": torch.ones(len(sample), text)} | sizes


def rotary_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    tokens = area(halved(size))
    return text_inputs(sample, size, text) | {"image_rotary_emb": (noise(tokens, 8), noise(tokens, 8, seed=1))}


def masked_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    return pooled_inputs(sample, size, text) | {"encoder_attention_mask": mask_last(len(sample), text)}


def frames_first(batch: int, size: Size) -> Size:
    return (batch, size[0], 4, *size[1:])


WAN = Architecture(
    build=partial(
        WanTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=8,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        rope_max_seq_len=32,
    ),
    arguments=text_inputs,
    **LATENTS,
    blocks=("WanTransformerBlock",),
)
WAN_TI2V = replace(WAN, arguments=later_inputs)


def chrono_edit(**changes: object) -> ChronoEditTransformer3DModel:
    return ChronoEditTransformer3DModel(**dict(WAN.build(**changes).config))


CHRONO_EDIT = replace(WAN, build=chrono_edit)
LTX = Architecture(
    build=partial(
        LTXVideoTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        num_layers=2,
        caption_channels=8,
    ),
    arguments=ltx_inputs,
    sizes=((3, 6, 6), (2, 5, 7)),
    sample=token_sample(4),
    grid=whole,
    blocks=("LTXVideoTransformerBlock",),
)
COGVIDEOX = Architecture(
    build=partial(
        CogVideoXTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=8,
        num_layers=2,
        sample_width=12,
        sample_height=12,
        sample_frames=9,
        max_text_seq_length=Architecture.text,
        use_rotary_positional_embeddings=True,
    ),
    arguments=rotary_inputs,
    **LATENTS | {"sample": frames_first},
    blocks=("CogVideoXBlock",),
)
HUNYUAN_VIDEO = Architecture(
    build=partial(
        HunyuanVideoTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=8,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 4, 4),
        guidance_embeds=False,
    ),
    arguments=masked_inputs,
    **LATENTS,
    blocks=("HunyuanVideoTransformerBlock", "HunyuanVideoSingleTransformerBlock"),
    depths=("num_layers", "num_single_layers"),
)
HUNYUAN_VIDEO_I2V = replace(
    HUNYUAN_VIDEO,
    build=partial(HUNYUAN_VIDEO.build, image_condition_type="token_replace"),
    blocks=("HunyuanVideoTokenReplaceTransformerBlock", "HunyuanVideoTokenReplaceSingleTransformerBlock"),
    refused=("block",),
)
