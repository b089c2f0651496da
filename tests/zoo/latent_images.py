"""Transformers that take an image of latents, and cut it into patches themselves."""

from functools import partial

import torch
from diffusers import (
    CogView4Transformer2DModel,
    DiTTransformer2DModel,
    HunyuanImageTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
)
from torch import Tensor

from zoo.architecture import (
    PIXELS,
    Architecture,
    Arguments,
    Size,
    halved,
    image_sample,
    mask_last,
    pooled_inputs,
    text_inputs,
    timestep,
)

LATENTS = {"sizes": PIXELS, "sample": image_sample(4), "grid": halved}


def class_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    labels = torch.arange(len(sample)) % 4
    return {"hidden_states": sample, "timestep": timestep(len(sample)), "class_labels": labels}


def masked_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    mask, time = mask_last(len(sample), text), timestep(len(sample)).float()
    return text_inputs(sample, size, text) | {"encoder_attention_mask": mask, "timestep": time}


def cropped_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    sizes = torch.tensor([[128.0, 128.0]]).expand(len(sample), -1)
    crop = {"original_size": sizes, "target_size": sizes, "crop_coords": torch.zeros(len(sample), 2)}
    return text_inputs(sample, size, text) | crop


DIT = Architecture(
    build=partial(
        DiTTransformer2DModel,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        num_layers=2,
        sample_size=16,
        patch_size=2,
        num_embeds_ada_norm=4,
        norm_num_groups=4,
    ),
    arguments=class_inputs,
    **LATENTS | {"sizes": ((16, 16), (12, 12))},  # diffusers' DiT draws squares alone
    blocks=("BasicTransformerBlock",),
)
PIXART = Architecture(
    build=partial(
        PixArtTransformer2DModel,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        sample_size=16,
        cross_attention_dim=16,
        caption_channels=8,
        norm_num_groups=4,
        use_additional_conditions=False,
    ),
    arguments=text_inputs,
    **LATENTS,
    blocks=("BasicTransformerBlock",),
)
SD3 = Architecture(
    build=partial(
        SD3Transformer2DModel,
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    ),
    arguments=pooled_inputs,
    **LATENTS,
    blocks=("JointTransformerBlock",),
)
HUNYUAN_IMAGE = Architecture(
    build=partial(
        HunyuanImageTransformer2DModel,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        patch_size=(2, 2),
        text_embed_dim=8,
        rope_axes_dim=(4, 4),
    ),
    arguments=masked_inputs,
    **LATENTS,
    blocks=("HunyuanImageTransformerBlock", "HunyuanImageSingleTransformerBlock"),
    depths=("num_layers", "num_single_layers"),
)
COGVIEW4 = Architecture(
    build=partial(
        CogView4Transformer2DModel,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        text_embed_dim=8,
        time_embed_dim=8,
        condition_dim=4,
        rope_axes_dim=(16, 16),
    ),
    arguments=cropped_inputs,
    **LATENTS,
    blocks=("CogView4TransformerBlock",),
)
