"""Transformers that take text and image as one sequence, in every block or in some."""

from functools import partial

import torch
from diffusers import (
    HiDreamImageTransformer2DModel,
    Lumina2Transformer2DModel,
    OmniGenTransformer2DModel,
    ZImageTransformer2DModel,
)
from torch import Tensor

from zoo.architecture import Architecture, Arguments, Size, area, halved, text_inputs, timestep
from zoo.latent_images import LATENTS
from zoo.noise import each_sample

REFINERS = ("noise_refiner", "context_refiner")
MULTIPLE = 32
"""Z-Image pads image and text each to a multiple of this."""


def z_image_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    """Every other text is longer, so that the rest is padded, and has a mask."""
    texts = each_sample(len(sample), text + MULTIPLE, 8)
    return {
        "x": list(sample.unsqueeze(2)),
        "t": torch.full((len(sample),), 0.5),
        "cap_feats": [rows[: text + index % 2 * MULTIPLE] for index, rows in enumerate(texts)],
    }


def lumina_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    """The last token of every text is padding."""
    mask = torch.ones(len(sample), text + 1, dtype=torch.long).index_fill(1, torch.tensor([text]), 0)
    return text_inputs(sample, size, text + 1) | {"encoder_attention_mask": mask}


def omnigen_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    """Text attends to what is before it, the image to everything; the text of every other sample starts later.

    The timestep is the last token of the text.
    """
    tokens, batch = text + area(halved(size)), len(sample)
    rows, columns = torch.arange(tokens)[:, None], torch.arange(tokens)
    mask = ((columns <= rows) | (rows >= text)).long().repeat(batch, 1, 1)
    for index in range(1, batch, 2):
        mask[index, :, 0] = 0
    mask[:, 0, 0] = 1
    return {
        "hidden_states": sample,
        "timestep": timestep(batch),
        "input_ids": torch.arange(text - 1).repeat(batch, 1),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": mask,
        "position_ids": torch.arange(tokens).repeat(batch, 1),
    }


def hidream_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    """Every block sees two texts, and a third of its own, which is as long as the second."""
    batch, own = len(sample), (text - 1) // 2
    return {
        "hidden_states": sample,
        "timesteps": timestep(batch),
        "encoder_hidden_states_t5": each_sample(batch, 1, 8),
        "encoder_hidden_states_llama3": each_sample(batch, 4, own, 8).movedim(1, 0),
        "pooled_embeds": each_sample(batch, 8),
    }


def hidream(num_layers: int = 2, num_single_layers: int = 2) -> HiDreamImageTransformer2DModel:
    """One text for every block."""
    return HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=num_layers,
        num_single_layers=num_single_layers,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[8, 8],
        text_emb_dim=8,
        num_routed_experts=3,
        num_activated_experts=2,
        axes_dims_rope=(2, 2, 4),
        max_resolution=(16, 16),
        llama_layers=list(range(num_layers + num_single_layers)),
    )


Z_IMAGE = Architecture(
    build=partial(
        ZImageTransformer2DModel,
        in_channels=4,
        dim=16,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=8,
        axes_dims=[2, 2, 4],
        axes_lens=[128, 16, 16],
    ),
    arguments=z_image_inputs,
    **LATENTS,
    blocks=("ZImageTransformerBlock",),
    refiners=REFINERS,
    depths=("n_layers",),
    references=2 * MULTIPLE,  # text and padding
)
LUMINA2 = Architecture(
    build=partial(
        Lumina2Transformer2DModel,
        sample_size=16,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(16, 16, 16),
        cap_feat_dim=8,
    ),
    arguments=lumina_inputs,
    **LATENTS,
    blocks=("Lumina2TransformerBlock",),
    refiners=REFINERS,
)
OMNIGEN = Architecture(
    build=partial(
        OmniGenTransformer2DModel,
        hidden_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        num_layers=2,
        pad_token_id=0,
        vocab_size=16,
        rope_scaling={"short_factor": [1.0] * 4, "long_factor": [1.0] * 4},
        pos_embed_max_size=16,
        time_step_dim=8,
    ),
    arguments=omnigen_inputs,
    **LATENTS,
    blocks=("OmniGenBlock",),
)
HIDREAM = Architecture(
    build=hidream,
    arguments=hidream_inputs,
    **LATENTS | {"sizes": ((12, 16), (10, 14))},
    blocks=("HiDreamBlock",),
    depths=("num_layers", "num_single_layers"),
    references=16,  # padding, since the image is no square
)
