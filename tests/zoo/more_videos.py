"""More transformers that take a video: of latents, as tokens with audio, and with frames of before."""

from dataclasses import replace
from functools import partial

import torch
from diffusers import (
    CosmosTransformer3DModel,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoFramepackTransformer3DModel,
    LTX2VideoTransformer3DModel,
    MotifVideoTransformer3DModel,
    SkyReelsV2Transformer3DModel,
)
from torch import Tensor

from zoo.architecture import (
    Architecture,
    Arguments,
    Size,
    area,
    halved,
    image_sample,
    mask_last,
    pooled_inputs,
    text_inputs,
    timestep,
    token_sample,
    whole,
)
from zoo.noise import each_sample, filled
from zoo.packed_images import WITH_REFERENCE
from zoo.videos import LATENTS


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
    refused=("block",),
)
LTX2_I2V = replace(
    LTX2,
    build=partial(LTX2.build, rope_type="split", gated_attn=True, cross_attn_mod=True),
    arguments=reference_inputs,
    **WITH_REFERENCE,
)


def by_frame(sample: Tensor) -> Tensor:
    """A time (batch, frames) of every frame."""
    return torch.arange(sample.shape[2]).mul(100.0).expand(len(sample), -1)


def forcing_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    return text_inputs(sample, size, text) | {"timestep": by_frame(sample), "enable_diffusion_forcing": True}


SKYREELS = Architecture(
    build=partial(
        SkyReelsV2Transformer3DModel,
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
    arguments=text_inputs,
    **LATENTS | {"sizes": ((4, 8, 12), (2, 10, 14))},
    blocks=("SkyReelsV2TransformerBlock",),
)
SKYREELS_FORCING = replace(SKYREELS, build=partial(SKYREELS.build, num_frame_per_block=2), arguments=forcing_inputs)


def cosmos(**changes: object) -> CosmosTransformer3DModel:
    # Trained positions are not all alike.
    return filled(
        CosmosTransformer3DModel(
            **{
                "in_channels": 4,
                "out_channels": 4,
                "num_attention_heads": 2,
                "attention_head_dim": 12,
                "num_layers": 2,
                "text_embed_dim": 8,
                "adaln_lora_dim": 8,
                "max_size": (8, 32, 32),
                "concat_padding_mask": False,
            }
            | changes
        ),
        "learnable_pos_embed",
        std=1.0,
    )


def cosmos_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    return text_inputs(sample, size, text) | {"timestep": timestep(len(sample)).float()}


def controlled_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    """Every frame has its time, a ControlNet adds to every token, and images beside the text say what to draw."""
    batch, tokens = len(sample), area(halved(size))
    given = text_inputs(sample, size, text)
    return given | {
        "timestep": by_frame(sample)[:, None, :, None, None],
        "encoder_hidden_states": (given["encoder_hidden_states"], each_sample(batch, 3, 8, seed=1)),
        "block_controlnet_hidden_states": [each_sample(batch, tokens, 24, seed=2)],
    }


COSMOS = Architecture(
    build=cosmos,
    arguments=cosmos_inputs,
    **LATENTS,
    blocks=("CosmosTransformerBlock",),
)
COSMOS_VIDEO2WORLD = replace(
    COSMOS,
    build=partial(
        cosmos, img_context_dim_in=8, img_context_num_tokens=3, img_context_dim_out=24, controlnet_block_every_n=2
    ),
    arguments=controlled_inputs,
)


def framepack_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    """Frames of before: one as it is, two at half the size, and four at a quarter."""
    batch, *plane = len(sample), *size[1:]
    before = {"clean": 1, "history_2x": 2, "history_4x": 4}
    given = pooled_inputs(sample, size, text - 2)
    return (
        given
        | {f"latents_{name}": each_sample(batch, 4, frames, *plane, seed=frames) for name, frames in before.items()}
        | {f"indices_latents_{name}": torch.arange(frames) for name, frames in before.items()}
        | {
            "indices_latents": torch.arange(size[0]) + 7,
            "encoder_attention_mask": mask_last(batch, text - 2),
            "image_embeds": each_sample(batch, 2, 8, seed=1),
        }
    )


FRAMEPACK = Architecture(
    build=partial(
        HunyuanVideoFramepackTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=8,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 4, 4),
        guidance_embeds=False,
        has_image_proj=True,
        image_proj_dim=8,
        has_clean_x_embedder=True,
    ),
    arguments=framepack_inputs,
    **LATENTS,
    blocks=("HunyuanVideoTransformerBlock", "HunyuanVideoSingleTransformerBlock"),
    depths=("num_layers", "num_single_layers"),
    history=36 + 9 + 4,
)


def motif_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    """The first part of the text is of an image."""
    batch, images = len(sample), 2
    return text_inputs(sample, size, text - images) | {
        "encoder_attention_mask": mask_last(batch, text - images),
        "image_embeds": each_sample(batch, images, 8, seed=1),
    }


MOTIF_VIDEO = Architecture(
    build=partial(
        MotifVideoTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=2,
        num_attention_heads=2,
        attention_head_dim=12,
        text_embed_dim=8,
        image_embed_dim=8,
        rope_axes_dim=(4, 4, 4),
        enable_text_cross_attention_dual=True,
        enable_text_cross_attention_single=True,
    ),
    arguments=motif_inputs,
    **LATENTS,
    blocks=("MotifVideoTransformerBlock", "MotifVideoSingleTransformerBlock"),
    depths=("num_layers", "num_single_layers"),
)
