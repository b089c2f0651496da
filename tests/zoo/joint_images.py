"""Further transformers that draw images: joint attention, and HunyuanDiT with its skip connections."""

from functools import partial

import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    ChromaTransformer2DModel,
    CogView3PlusTransformer2DModel,
    GlmImageTransformer2DModel,
    HunyuanDiT2DModel,
    PRXTransformer2DModel,
)
from torch import Tensor

from zoo.architecture import (
    Architecture,
    Arguments,
    Size,
    area,
    halved,
    mask_last,
    text_inputs,
    timestep,
)
from zoo.latent_images import LATENTS, cropped_inputs
from zoo.noise import each_sample, filled, noise
from zoo.packed_images import BOTH, PACKED, TINY, positioned_inputs


def chroma_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    """Its pipeline masks padding in a text that is joined with the image."""
    mask = torch.cat([mask_last(len(sample), text), torch.ones(sample.shape[:2])], 1)
    return positioned_inputs(sample, size, text) | {"attention_mask": mask}


def rotary_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    """Two texts, of which the second is masked, and rotary rows for the image."""
    batch, tokens = len(sample), area(halved(size))
    return text_inputs(sample, size, text) | {
        "timestep": timestep(batch).float(),
        "text_embedding_mask": torch.ones(batch, text),
        "encoder_hidden_states_t5": each_sample(batch, text, 8, seed=1),
        "text_embedding_mask_t5": mask_last(batch, text),
        "image_meta_size": torch.full((batch, 6), 128.0),
        "style": torch.zeros(batch, dtype=torch.long),
        "image_rotary_emb": (noise(tokens, 8), noise(tokens, 8, seed=1)),
    }


def masked_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    return text_inputs(sample, size, text) | {"attention_mask": mask_last(len(sample), text).bool()}


def prior_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    """Every token of the image has an embedding of its own to begin with."""
    ids = torch.arange(area(halved(size))).expand(len(sample), -1) % 16
    inputs = cropped_inputs(sample, size, text) | {"prior_token_id": ids, "prior_token_drop": ids == 3}
    inputs |= {"attention_mask": mask_last(len(sample), text)}
    return {name: value for name, value in inputs.items() if name != "original_size"}


def prx(**changes: object) -> PRXTransformer2DModel:
    # Modulation of zero would close every gate.
    return filled(
        PRXTransformer2DModel(
            **{
                "in_channels": 4,
                "context_in_dim": 8,
                "hidden_size": 16,
                "num_heads": 2,
                "depth": 2,
                "axes_dim": [4, 4],
            }
            | changes
        ),
        ".modulation.lin.weight",
    )


CHROMA = Architecture(
    build=partial(
        ChromaTransformer2DModel,
        **TINY,
        axes_dims_rope=(2, 2, 4),
        approximator_hidden_dim=16,
        approximator_layers=1,
    ),
    arguments=chroma_inputs,
    **PACKED,
    blocks=("ChromaTransformerBlock", "ChromaSingleTransformerBlock"),
    depths=BOTH,
    graphs=3,
)
AURA_FLOW = Architecture(
    build=partial(
        AuraFlowTransformer2DModel,
        sample_size=16,
        in_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=16,
        pos_embed_max_size=64,
    ),
    arguments=text_inputs,
    **LATENTS,
    blocks=("AuraFlowJointTransformerBlock", "AuraFlowSingleTransformerBlock"),
    depths=("num_mmdit_layers", "num_single_dit_layers"),
    registers=8,
)
HUNYUAN_DIT = Architecture(
    build=partial(
        HunyuanDiT2DModel,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        patch_size=2,
        sample_size=16,
        hidden_size=16,
        num_layers=4,
        cross_attention_dim=8,
        cross_attention_dim_t5=8,
        pooled_projection_dim=8,
        text_len=Architecture.text,
        text_len_t5=Architecture.text,
    ),
    arguments=rotary_inputs,
    **LATENTS,
    blocks=("HunyuanDiTBlock",),
)
COGVIEW3 = Architecture(
    build=partial(
        CogView3PlusTransformer2DModel,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        text_embed_dim=8,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=16,
    ),
    arguments=cropped_inputs,
    **LATENTS,
    blocks=("CogView3PlusTransformerBlock",),
)
PRX = Architecture(
    build=prx,
    arguments=masked_inputs,
    **LATENTS,
    blocks=("PRXBlock",),
    depths=("depth",),
)
GLM_IMAGE = Architecture(
    build=partial(
        GlmImageTransformer2DModel,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        text_embed_dim=8,
        time_embed_dim=8,
        condition_dim=4,
        prior_vq_quantizer_codebook_size=16,
    ),
    arguments=prior_inputs,
    **LATENTS,
    blocks=("GlmImageTransformerBlock",),
)
