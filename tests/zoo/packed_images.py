"""Transformers that take an image as tokens, with their positions, and reference images behind them."""

from dataclasses import replace
from functools import partial

import torch
from diffusers import (
    BriaTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
)
from torch import Tensor

from zoo.architecture import (
    TOKENS,
    Architecture,
    Arguments,
    Size,
    area,
    mask_last,
    pooled_inputs,
    text_inputs,
    timestep,
    token_sample,
    whole,
)

REFERENCES = 9
"""Tokens of a reference image of 3 x 3."""

PACKED = {"sizes": TOKENS, "sample": token_sample(4), "grid": whole}
WITH_REFERENCE = {"sample": token_sample(4, REFERENCES), "references": REFERENCES}
BOTH = ("num_layers", "num_single_layers")
TINY = {
    "in_channels": 4,
    "num_layers": 2,
    "num_single_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "joint_attention_dim": 8,
}


def positions(*size: int, first: float, width: int) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    ids = torch.zeros(rows.numel(), width)
    ids[:, 0], ids[:, 1], ids[:, 2] = first, rows.flatten(), columns.flatten()
    return ids


def image_positions(sample: Tensor, size: Size, width: int = 3) -> Tensor:
    """Of the image, and behind it of the reference image if there is one, whose first coordinate is another."""
    image = positions(*size, first=0, width=width)
    with_reference = sample.shape[1] > area(size)
    return torch.cat([image, positions(3, 3, first=1, width=width)]) if with_reference else image


def positioned_inputs(sample: Tensor, size: Size, text: int, width: int = 3) -> Arguments:
    return text_inputs(sample, size, text) | {
        "timestep": torch.full((len(sample),), 0.5),
        "img_ids": image_positions(sample, size, width),
        "txt_ids": torch.zeros(text, width),
    }


def flux_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    return pooled_inputs(sample, size, text) | positioned_inputs(sample, size, text)


def bria_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    return flux_inputs(sample, size, text) | {"timestep": timestep(len(sample)).float()}


def flux2_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    return positioned_inputs(sample, size, text, width=4)


def qwen_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    return text_inputs(sample, size, text) | {
        "encoder_hidden_states_mask": mask_last(len(sample), text).bool(),
        "timestep": torch.full((len(sample),), 0.5),
        "img_shapes": [[(1, *size)]] * len(sample),
    }


def edit_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    return qwen_inputs(sample, size, text) | {"img_shapes": [[(1, *size), (1, 3, 3)]] * len(sample)}


FLUX = Architecture(
    build=partial(
        FluxTransformer2DModel,
        **TINY,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
    ),
    arguments=flux_inputs,
    **PACKED,
    blocks=("FluxTransformerBlock", "FluxSingleTransformerBlock"),
    depths=BOTH,
    graphs=3,
)
FLUX_KONTEXT = replace(FLUX, **WITH_REFERENCE)
FLUX2 = Architecture(
    build=partial(
        Flux2Transformer2DModel,
        **TINY,
        timestep_guidance_channels=8,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=False,
    ),
    arguments=flux2_inputs,
    **PACKED,
    blocks=("Flux2TransformerBlock", "Flux2SingleTransformerBlock"),
    depths=BOTH,
    graphs=3,
)
FLUX2_WITH_REFERENCE = replace(FLUX2, **WITH_REFERENCE)
QWEN_IMAGE = Architecture(
    build=partial(
        QwenImageTransformer2DModel,
        in_channels=4,
        out_channels=1,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(4, 6, 6),
    ),
    arguments=qwen_inputs,
    **PACKED,
    blocks=("QwenImageTransformerBlock",),
)
QWEN_IMAGE_EDIT = replace(
    QWEN_IMAGE, build=partial(QWEN_IMAGE.build, zero_cond_t=True), arguments=edit_inputs, **WITH_REFERENCE
)
BRIA = Architecture(
    build=partial(
        BriaTransformer2DModel,
        **TINY,
        axes_dims_rope=(2, 2, 4),
    ),
    arguments=bria_inputs,
    **PACKED,
    blocks=("BriaTransformerBlock",),
    depths=BOTH,
    graphs=3,
)
