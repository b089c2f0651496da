"""More transformers that take a video: of latents, as tokens with audio, and with frames of before."""

from functools import partial

import torch
from diffusers import HunyuanVideo15Transformer3DModel
from torch import Tensor

from zoo.architecture import (
    Architecture,
    Arguments,
    Size,
    image_sample,
    mask_last,
    text_inputs,
    timestep,
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
