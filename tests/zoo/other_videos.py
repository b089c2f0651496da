"""Transformers that take a video, whose blocks and grids are each of a kind of their own."""

from functools import partial
from typing import Any

import torch
from diffusers import (
    AllegroTransformer3DModel,
    AnyFlowTransformer3DModel,
    ConsisIDTransformer3DModel,
    EasyAnimateTransformer3DModel,
    HeliosTransformer3DModel,
    Kandinsky5Transformer3DModel,
    Kandinsky6Transformer3DModel,
)
from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro
from torch import Tensor, nn

from zoo.architecture import Architecture, Arguments, Size, halved, mask_last, pooled_inputs, text_inputs
from zoo.noise import each_sample, filled, noise
from zoo.videos import LATENTS, frames_first, rotary_inputs

FACES = 3


def channels_last(batch: int, size: Size) -> Size:
    return (batch, *size, 4)


def kandinsky5_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    places = {"visual_rope_pos": tuple(map(torch.arange, halved(size))), "text_rope_pos": torch.arange(text)}
    return pooled_inputs(sample, size, text) | places


def kandinsky6_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    """With sound, and a text that is padded."""
    sound = {"audio_hidden_states": each_sample(len(sample), 7, 4)}
    return pooled_inputs(sample, size, text) | sound | {"encoder_attention_mask": mask_last(len(sample), text).bool()}


def allegro_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    """The positions as the pipeline computes them."""
    frames, *frame = halved(size)
    rows = get_3d_rotary_pos_embed_allegro(12, ((0, 0), tuple(frame)), tuple(frame), frames)
    positions = torch.cartesian_prod(*(axis.long() for axis in rows[3:])).T[:, None]
    rotary = {"image_rotary_emb": (rows[:3], tuple(positions))}
    return text_inputs(sample, size, text) | rotary | {"encoder_attention_mask": mask_last(len(sample), text)}


def consis_id_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    """The video has a face to show."""
    batch, tokens = len(sample), torch.Size(halved(size)).numel()
    face = {"id_cond": each_sample(batch, 8), "id_vit_hidden": [each_sample(batch, FACES, 8)] * 2}
    rotary = {"image_rotary_emb": (noise(tokens, 12), noise(tokens, 12, seed=1))}
    return rotary_inputs(sample, size, text) | rotary | face


def helios_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    """As many tokens of earlier frames, in front of the video, as text has."""
    batch = len(sample)
    history = {
        "indices_hidden_states": torch.arange(1, 1 + size[0])[None],
        "indices_latents_history_short": torch.zeros(1, 1),
        "latents_history_short": each_sample(batch, 4, 1, 2, 2 * text, seed=1),
    }
    return text_inputs(sample, size, text) | history


def any_flow_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    """The first frame is given: its tokens are at another time."""
    times = torch.arange(size[0]).gt(0).mul(500).expand(len(sample), -1)
    return text_inputs(sample, size, text) | {"timestep": times, "r_timestep": times // 2}


def kandinsky5(**changes: Any) -> nn.Module:
    options = {"in_text_dim": 8, "in_text_dim2": 8, "time_dim": 8, "model_dim": 24, "ff_dim": 32, "num_text_blocks": 1}
    network = Kandinsky5Transformer3DModel(**options | {"num_visual_blocks": 2, "axes_dims": (4, 4, 4)} | changes)
    return filled(network, "modulation.out_layer.weight")


KANDINSKY5 = Architecture(
    build=kandinsky5,
    arguments=kandinsky5_inputs,
    **LATENTS | {"sample": channels_last},
    blocks=("Kandinsky5TransformerDecoderBlock",),
    depths=("num_visual_blocks",),
)
KANDINSKY6 = Architecture(
    build=partial(
        Kandinsky6Transformer3DModel,
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=8,
        in_text_dim2=8,
        time_dim=8,
        model_dim=24,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 4, 4),
        visual_cond=False,
        in_audio_dim=4,
        out_audio_dim=4,
        ca_rope=True,
        cross_gates=True,
        fix_modulation=True,
    ),
    arguments=kandinsky6_inputs,
    **LATENTS | {"sample": channels_last},
    blocks=("Kandinsky6FusedTransformerDecoderBlock",),
    depths=("num_visual_blocks",),
    refused=("block",),
)
ALLEGRO = Architecture(
    build=partial(
        AllegroTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        cross_attention_dim=24,
        sample_height=12,
        sample_width=12,
        sample_frames=3,
        caption_channels=8,
    ),
    arguments=allegro_inputs,
    **LATENTS,
    blocks=("AllegroTransformerBlock",),
)
CONSIS_ID = Architecture(
    build=partial(
        ConsisIDTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=12,
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
        is_train_face=True,
        cross_attn_interval=1,
        cross_attn_dim_head=8,
        cross_attn_num_heads=1,
        LFE_id_dim=8,
        LFE_vit_dim=8,
        LFE_depth=2,
        LFE_dim_head=8,
        LFE_num_heads=1,
        LFE_num_id_token=2,
        LFE_num_querie=4,
        LFE_output_dim=16,
        LFE_num_scale=2,
    ),
    arguments=consis_id_inputs,
    **LATENTS | {"sample": frames_first},
    blocks=("ConsisIDBlock",),
)
EASY_ANIMATE = Architecture(
    build=partial(
        EasyAnimateTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        num_layers=2,
        mmdit_layers=1,
        time_embed_dim=8,
        text_embed_dim=8,
    ),
    arguments=text_inputs,
    **LATENTS,
    blocks=("EasyAnimateTransformerBlock",),
)
HELIOS = Architecture(
    build=partial(
        HeliosTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=8,
        ffn_dim=32,
        num_layers=2,
        rope_dim=(4, 4, 4),
        is_amplify_history=True,
    ),
    arguments=helios_inputs,
    **LATENTS,
    blocks=("HeliosTransformerBlock",),
)
ANY_FLOW = Architecture(
    build=partial(
        AnyFlowTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=8,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    ),
    arguments=any_flow_inputs,
    **LATENTS | {"sample": frames_first},
    blocks=("AnyFlowTransformerBlock",),
)
