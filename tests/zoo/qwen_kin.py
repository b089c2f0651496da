"""Transformers with text, image and reference images in one sequence, or with other orders of tokens than the usual."""

from functools import partial
from typing import Any

import torch
from diffusers import (
    ErnieImageTransformer2DModel,
    NucleusMoEImageTransformer2DModel,
    QwenImage21Transformer2DModel,
)
from torch import Tensor

from zoo.architecture import (
    TOKENS,
    Architecture,
    Arguments,
    Size,
    area,
    image_sample,
    whole,
)
from zoo.noise import each_sample, filled
from zoo.packed_images import PACKED, qwen_inputs

EVEN = ((8, 8), (6, 10))
"""Of tokens that the network takes in groups of 2 x 2."""


def qwen21_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    """A text, and the image behind it, of which a slot in the mask is four tokens."""
    slots = torch.arange(text + area(size) // 4) >= text
    return qwen_inputs(sample, size, text) | {"img_mask": slots.expand(len(sample), -1)}


def ernie_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    lengths = text - torch.arange(len(sample)) % 2
    given = {"text_bth": each_sample(len(sample), text, 8), "text_lens": lengths}
    return {"hidden_states": sample, "timestep": torch.full((len(sample),), 500.0)} | given


def nucleus_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    return qwen_inputs(sample, size, text) | {"img_shapes": [(1, *size)] * len(sample)}


def ernie(**options: Any) -> ErnieImageTransformer2DModel:
    return filled(ErnieImageTransformer2DModel(**options), "adaLN_modulation", "final_linear")


def nucleus(**options: Any) -> NucleusMoEImageTransformer2DModel:
    return filled(NucleusMoEImageTransformer2DModel(**options), "gate_up_proj", "down_proj")


QWEN_IMAGE_21 = Architecture(
    build=partial(
        QwenImage21Transformer2DModel,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=8,
        axes_dims_rope=(4, 6, 6),
    ),
    arguments=qwen21_inputs,
    **PACKED | {"sizes": EVEN},
    blocks=("QwenImage21TransformerBlock",),
)
ERNIE_IMAGE = Architecture(
    build=partial(
        ernie,
        hidden_size=24,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=32,
        in_channels=4,
        out_channels=4,
        text_in_dim=8,
        rope_axes_dim=(4, 4, 4),
    ),
    arguments=ernie_inputs,
    sizes=TOKENS,
    sample=image_sample(4),
    grid=whole,
    blocks=("ErnieImageSharedAdaLNBlock",),
    references=Architecture.text,  # its text is behind the image, in one sequence
)
NUCLEUS_IMAGE = Architecture(
    build=partial(
        nucleus,
        in_channels=4,
        out_channels=1,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        joint_attention_dim=8,
        axes_dims_rope=(4, 6, 6),
        mlp_ratio=6.0,
        dense_moe_strategy="leave_first_block_dense",
        num_experts=2,
        moe_intermediate_dim=16,
        capacity_factors=1.0,
    ),
    arguments=nucleus_inputs,
    **PACKED,
    blocks=("NucleusMoEImageTransformerBlock",),
    refused=("block",),
)
