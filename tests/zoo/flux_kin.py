"""Transformers that descend from Flux: text in front of image tokens, whose positions are an argument."""

from dataclasses import replace
from functools import partial

import torch
from diffusers import (
    BriaFiboTransformer2DModel,
    Flux3Transformer2DModel,
    Ideogram4Transformer2DModel,
    Krea2Transformer2DModel,
    LongCatImageTransformer2DModel,
    OvisImageTransformer2DModel,
)
from torch import Tensor

from zoo.architecture import Architecture, Arguments, Size, area, mask_last
from zoo.noise import each_sample
from zoo.packed_images import (
    BOTH,
    PACKED,
    TINY,
    WITH_REFERENCE,
    positioned_inputs,
    positions,
)

IMAGE_OFFSET = 65536
"""Where Ideogram 4 has the positions of its image."""
PADDING, IMAGE, TEXT = 0, 2, 3
"""What Ideogram 4 calls them in `indicator`."""


def flux3_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    """Rows and columns are half as far apart, and reference images are an argument of their own."""
    inputs = positioned_inputs(sample, size, text, 4)
    image, references = sample.split([area(size), sample.shape[1] - area(size)], 1)
    ids = inputs["img_ids"] * torch.tensor([1.0, 0.5, 0.5, 1.0])
    inputs |= {"hidden_states": image, "img_ids": ids[: area(size)]}
    if not references.shape[1]:
        return inputs
    return inputs | {"image_cond_hidden_states": references, "image_cond_ids": ids[area(size) :]}


def krea2_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    return {
        "hidden_states": sample,
        "encoder_hidden_states": each_sample(len(sample), text, 2, 8),
        "timestep": torch.full((len(sample),), 0.5),
        "position_ids": torch.cat([torch.zeros(text, 3), positions(*size, first=0, width=3)]),
        "encoder_attention_mask": mask_last(len(sample), text).bool(),
    }


def ideogram4_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    """Text is part of the sequence, with padding in front of it."""
    batch, padding = len(sample), 1
    roles = torch.tensor([PADDING] * padding + [TEXT] * (text - padding) + [IMAGE] * area(size)).repeat(batch, 1)
    count = torch.arange(text) - padding
    ids = torch.cat([count.clamp_min(0)[:, None].repeat(1, 3), positions(*size, first=0, width=3) + IMAGE_OFFSET])
    return {
        "hidden_states": torch.cat([torch.zeros(batch, text, sample.shape[2]), sample], 1),
        "timestep": torch.full((batch,), 0.5),
        "encoder_hidden_states": each_sample(batch, text + area(size), 8),
        "position_ids": ids.long().repeat(batch, 1, 1),
        "segment_ids": torch.where(roles == PADDING, -1, 1),
        "indicator": roles,
    }


def longcat_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    """The positions of images begin behind those of the text."""
    inputs = positioned_inputs(sample, size, text)
    return inputs | {"img_ids": inputs["img_ids"] + torch.tensor([1.0, text, text])}


def fibo_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    """Every block gets text of its own, and a mask of all tokens."""
    mask = torch.cat([mask_last(len(sample), text), torch.ones(sample.shape[:2])], 1).bool()
    return positioned_inputs(sample, size, text) | {
        "text_encoder_layers": [each_sample(len(sample), text, 8) for _ in range(4)],
        "joint_attention_kwargs": {"attention_mask": mask[:, None, None]},
    }


FLUX3 = Architecture(
    build=partial(
        Flux3Transformer2DModel, **TINY, cond_in_channels=4, timestep_channels=8, axes_dims_rope=(2, 2, 2, 2)
    ),
    arguments=flux3_inputs,
    **PACKED,
    blocks=("Flux3SingleTransformerBlock",),
    depths=BOTH,
    graphs=3,
)
FLUX3_WITH_REFERENCE = replace(FLUX3, **WITH_REFERENCE)
KREA2 = Architecture(
    build=partial(
        Krea2Transformer2DModel,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=16,
        timestep_embed_dim=8,
        text_hidden_dim=8,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=16,
        axes_dims_rope=(4, 2, 2),
    ),
    arguments=krea2_inputs,
    **PACKED,
    blocks=("Krea2TransformerBlock",),
    graphs=3,
)
IDEOGRAM4 = Architecture(
    build=partial(
        Ideogram4Transformer2DModel,
        in_channels=4,
        num_layers=2,
        attention_head_dim=12,
        num_attention_heads=2,
        intermediate_size=16,
        adaln_dim=8,
        llm_features_dim=8,
        mrope_section=(2, 2, 2),
    ),
    arguments=ideogram4_inputs,
    **PACKED,
    blocks=("Ideogram4TransformerBlock",),
    graphs=3,
)
LONGCAT_IMAGE = Architecture(
    build=partial(LongCatImageTransformer2DModel, **TINY, axes_dims_rope=(2, 2, 4)),
    arguments=longcat_inputs,
    **PACKED,
    blocks=("LongCatImageTransformerBlock", "LongCatImageSingleTransformerBlock"),
    depths=BOTH,
    graphs=3,
)
LONGCAT_IMAGE_EDIT = replace(LONGCAT_IMAGE, **WITH_REFERENCE)
OVIS_IMAGE = Architecture(
    build=partial(OvisImageTransformer2DModel, **TINY, out_channels=4, axes_dims_rope=(2, 2, 4)),
    arguments=positioned_inputs,
    **PACKED,
    blocks=("OvisImageTransformerBlock", "OvisImageSingleTransformerBlock"),
    depths=BOTH,
    graphs=3,
)
FIBO = Architecture(
    build=partial(BriaFiboTransformer2DModel, **TINY, text_encoder_dim=8, axes_dims_rope=(2, 2, 4)),
    arguments=fibo_inputs,
    **PACKED,
    blocks=("BriaFiboTransformerBlock", "BriaFiboSingleTransformerBlock"),
    depths=(),  # its inputs have a text for every block
    graphs=3,
)
FIBO_EDIT = replace(FIBO, **WITH_REFERENCE)
