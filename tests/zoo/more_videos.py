"""More transformers that take a video: of latents, as tokens with audio, and with frames of before."""

from dataclasses import replace
from functools import partial

import torch
from diffusers import HunyuanVideo15Transformer3DModel, LTX2VideoTransformer3DModel
from torch import Tensor

from zoo.architecture import (
    Architecture,
    Arguments,
    Size,
    area,
    image_sample,
    mask_last,
    text_inputs,
    timestep,
    token_sample,
    whole,
)
from zoo.noise import each_sample


def hunyuan15_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    """Its text is of three parts, of which the network puts those that are masked behind all others."""
    batch, images = len(sample), 1
    texts = each_sample(batch, text - 2 - images, 8)
    return text_inputs(sample, size, text) | {
        "encoder_hidden_states": texts,
        "encoder_attention_mask": mask_last(batch, texts.shape[1]),
        "encoder_hidden_states_2": each_sample(batch, 2, 8, seed=1),
        "encoder_attention_mask_2": torch.ones(batch, 2),
        "image_embeds": torch.zeros(batch, images, 8),
        "timestep": timestep(batch).float(),
    }


HUNYUAN_VIDEO_15 = Architecture(
    build=partial(
        HunyuanVideo15Transformer3DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_refiner_layers=1,
        text_embed_dim=8,
        text_embed_2_dim=8,
        image_embed_dim=8,
        rope_axes_dim=(4, 4, 4),
    ),
    arguments=hunyuan15_inputs,
    sizes=((3, 6, 6), (2, 5, 7)),
    sample=image_sample(4),
    grid=whole,
    blocks=("HunyuanVideo15TransformerBlock",),
)


def ltx2_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    batch, sounds = len(sample), 4
    sizes = dict(zip(("num_frames", "height", "width"), size, strict=True))
    return (
        text_inputs(sample, size, text)
        | sizes
        | {
            "audio_hidden_states": each_sample(batch, sounds, 4, seed=1),
            "audio_encoder_hidden_states": each_sample(batch, text, 8, seed=1),
            "audio_num_frames": sounds,
            "timestep": timestep(batch).float(),
            "sigma": timestep(batch).float(),
            "encoder_attention_mask": torch.ones(batch, text),
            "audio_encoder_attention_mask": torch.ones(batch, text),
        }
    )


def reference_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    """The first frame is given, and behind the video lie tokens of a reference that the others see in part."""
    batch, tokens = sample.shape[:2]
    given = torch.arange(tokens) < area(size[1:])
    given |= torch.arange(tokens) >= area(size)
    coordinates = torch.arange(3 * tokens * 2).reshape(1, 3, tokens, 2).expand(batch, -1, -1, -1) / tokens
    mask = torch.where(given[:, None] == given, 1.0, 0.9999)
    return ltx2_inputs(sample, size, text) | {
        "timestep": torch.where(given, 0.0, 500.0).expand(batch, -1),
        "audio_timestep": timestep(batch).float(),
        "video_coords": coordinates,
        "video_self_attention_mask": mask.expand(batch, -1, -1),
    }


REFERENCES = 9
LTX2 = Architecture(
    build=partial(
        LTX2VideoTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=6,
        audio_cross_attention_dim=12,
        num_layers=2,
        caption_channels=8,
        perturbed_attn=True,
    ),
    arguments=ltx2_inputs,
    sizes=((3, 6, 6), (2, 5, 7)),
    sample=token_sample(4),
    grid=whole,
    blocks=("LTX2VideoTransformerBlock",),
)
LTX2_I2V = replace(
    LTX2,
    build=partial(LTX2.build, rope_type="split", gated_attn=True, cross_attn_mod=True),
    arguments=reference_inputs,
    sample=token_sample(4, REFERENCES),
    references=REFERENCES,
)
