"""The shipped pipelines around tiny networks with random weights, for what does not depend on the pictures."""

import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel
from torch import nn

from catome_bench.models.pipeline import PIPELINES, ClassPipeline
from catome_bench.models.untrained import TOKENS_PER_CLASS, build_scheduler
from zoo.noise import seeded


def tiny_unet() -> UNet2DConditionModel:
    """Two blocks with 64 tokens, one with 16, for pictures of 16 pixels."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=12,
        out_channels=12,
        block_out_channels=(16, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        cross_attention_dim=16,
        norm_num_groups=4,
        encoder_hid_dim=TOKENS_PER_CLASS * 7,
        encoder_hid_dim_type="text_proj",
    )


def tiny_dit() -> DiTTransformer2DModel:
    """Two blocks with 16 tokens."""
    return DiTTransformer2DModel(
        sample_size=8,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_embeds_ada_norm=6,
        norm_num_groups=4,
    )


def tiny_shipped(arch: str = "unet", dtype: torch.dtype = torch.float32) -> ClassPipeline:
    """In the place of `load_shipped`, the same at every call."""
    with seeded():
        network = {"unet": tiny_unet, "dit": tiny_dit}[arch]().eval()
    return PIPELINES[arch](nn.Module.to(network, dtype), build_scheduler())
