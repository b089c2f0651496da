"""Every architecture, and further ways to call some of them: what the life-cycle and the laws are run over."""

from dataclasses import replace
from typing import Any

import torch
from diffusers import (
    BriaTransformer2DModel,
    ChronoEditTransformer3DModel,
    CogView4Transformer2DModel,
    Flux2Transformer2DModel,
    HunyuanImageTransformer2DModel,
)
from torch import Tensor

from architectures import (
    ARCHITECTURES,
    TEXT,
    Architecture,
    Size,
    _each,
    _flux_inputs,
    _halved,
    _image,
    _timestep,
    _tokens,
)

REFERENCES = 9
"""Tokens of a reference image of 3 x 3."""

TINY = {"in_channels": 4, "num_layers": 2, "num_attention_heads": 2}
BOTH = ("num_layers", "num_single_layers")


def _beside_reference(size: Size) -> Size:
    return (torch.Size(size).numel() + REFERENCES,)


def _tokens_and_reference(batch: int, size: Size) -> tuple[int, ...]:
    return (batch, *_beside_reference(size), 4)


def _positions(*size: int, first: float, width: int) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    ids = torch.zeros(rows.numel(), width)
    ids[:, 0], ids[:, 1], ids[:, 2] = first, rows.flatten(), columns.flatten()
    return ids


def _image_positions(size: Size, references: int, width: int = 3) -> Tensor:
    """Of the image, and behind it of the reference image, whose first coordinate is another."""
    image = _positions(*size, first=0, width=width)
    return torch.cat([image, _positions(3, 3, first=1, width=width)]) if references else image


def _kontext_inputs(sample: Tensor, size: Size) -> dict[str, Any]:
    return _flux_inputs(sample, size) | {"img_ids": _image_positions(size, REFERENCES)}


def _flux2_inputs(sample: Tensor, size: Size) -> dict[str, Any]:
    references = sample.shape[1] - torch.Size(size).numel()
    return {
        "hidden_states": sample,
        "encoder_hidden_states": _each(len(sample), TEXT, 8),
        "timestep": torch.full((len(sample),), 0.5),
        "img_ids": _image_positions(size, references, 4),
        "txt_ids": torch.zeros(TEXT, 4),
    }


def _cogview_inputs(sample: Tensor, size: Size) -> dict[str, Any]:
    sizes = torch.tensor([[128.0, 128.0]]).expand(len(sample), -1)
    return {
        "hidden_states": sample,
        "encoder_hidden_states": _each(len(sample), TEXT, 8),
        "timestep": _timestep(len(sample)),
        "original_size": sizes,
        "target_size": sizes,
        "crop_coords": torch.zeros(len(sample), 2),
    }


def _masked_inputs(sample: Tensor, size: Size) -> dict[str, Any]:
    """The last token of the text is masked."""
    inputs = ARCHITECTURES["HunyuanVideo"].inputs(sample, size)
    inputs.pop("pooled_projections")
    return inputs | {"timestep": _timestep(len(sample)).float()}


def _edit_inputs(sample: Tensor, size: Size) -> dict[str, Any]:
    inputs = ARCHITECTURES["Qwen-Image"].inputs(sample, size)
    return inputs | {"img_shapes": [[(1, *size), (1, 3, 3)]] * len(sample)}


FLUX2 = Architecture(
    lambda **changes: Flux2Transformer2DModel(
        **TINY
        | {
            "num_single_layers": 2,
            "attention_head_dim": 8,
            "joint_attention_dim": 8,
            "timestep_guidance_channels": 8,
            "axes_dims_rope": (2, 2, 2, 2),
            "guidance_embeds": False,
        }
        | changes
    ),
    _flux2_inputs,
    ((8, 8), (5, 7)),
    _tokens(4),
    lambda size: size,
    ("Flux2TransformerBlock", "Flux2SingleTransformerBlock"),
    BOTH,
    graphs=3,
)

MORE: dict[str, Architecture] = {
    "Flux Kontext": replace(
        ARCHITECTURES["Flux"], inputs=_kontext_inputs, sample=_tokens_and_reference, references=REFERENCES
    ),
    "Flux.2": FLUX2,
    "Flux.2 with a reference": replace(FLUX2, sample=_tokens_and_reference, references=REFERENCES),
    "Qwen-Image-Edit": replace(
        ARCHITECTURES["Qwen-Image"],
        build=lambda **changes: ARCHITECTURES["Qwen-Image"].build(**{"zero_cond_t": True} | changes),
        inputs=_edit_inputs,
        sample=_tokens_and_reference,
        references=REFERENCES,
    ),
    "HunyuanVideo I2V": replace(
        ARCHITECTURES["HunyuanVideo"],
        build=lambda **changes: ARCHITECTURES["HunyuanVideo"].build(
            **{"image_condition_type": "token_replace"} | changes
        ),
        blocks=("HunyuanVideoTokenReplaceTransformerBlock", "HunyuanVideoTokenReplaceSingleTransformerBlock"),
        refused=("block",),
    ),
    "HunyuanImage": Architecture(
        lambda **changes: HunyuanImageTransformer2DModel(
            **TINY
            | {
                "out_channels": 4,
                "num_single_layers": 2,
                "num_refiner_layers": 1,
                "attention_head_dim": 8,
                "patch_size": (2, 2),
                "text_embed_dim": 8,
                "rope_axes_dim": (4, 4),
            }
            | changes
        ),
        _masked_inputs,
        ((16, 16), (10, 14)),
        _image(4),
        _halved,
        ("HunyuanImageTransformerBlock", "HunyuanImageSingleTransformerBlock"),
        BOTH,
    ),
    "ChronoEdit": replace(
        ARCHITECTURES["Wan"],
        build=lambda **changes: ChronoEditTransformer3DModel(**dict(ARCHITECTURES["Wan"].build(**changes).config)),
    ),
    "CogView4": Architecture(
        lambda **changes: CogView4Transformer2DModel(
            **TINY
            | {
                "out_channels": 4,
                "attention_head_dim": 8,
                "text_embed_dim": 8,
                "time_embed_dim": 8,
                "condition_dim": 4,
                "rope_axes_dim": (16, 16),
            }
            | changes
        ),
        _cogview_inputs,
        ((16, 16), (10, 14)),
        _image(4),
        _halved,
        ("CogView4TransformerBlock",),
    ),
    "Bria": Architecture(
        lambda **changes: BriaTransformer2DModel(
            **TINY
            | {
                "num_single_layers": 2,
                "attention_head_dim": 8,
                "joint_attention_dim": 8,
                "axes_dims_rope": (2, 2, 4),
            }
            | changes
        ),
        lambda sample, size: _flux_inputs(sample, size) | {"timestep": _timestep(len(sample)).float()},
        ((8, 8), (5, 7)),
        _tokens(4),
        lambda size: size,
        ("BriaTransformerBlock",),
        BOTH,
        graphs=3,
    ),
}

SUBJECTS: dict[str, Architecture] = ARCHITECTURES | MORE
