"""Tiny UNets that draw videos."""

import torch
from diffusers import UNet3DConditionModel, UNetMotionModel, UNetSpatioTemporalConditionModel
from torch import Tensor, nn

from zoo.noise import noise

VIDEO = {"block_out_channels": (8, 16), "layers_per_block": 1, "cross_attention_dim": 8, "norm_num_groups": 4}


def animate_diff() -> nn.Module:
    blocks = {
        "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
        "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
    }
    return UNetMotionModel(**VIDEO, **blocks, num_attention_heads=2, motion_num_attention_heads=2)


def text_to_video() -> nn.Module:
    blocks = {
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    }
    return UNet3DConditionModel(**VIDEO, **blocks, attention_head_dim=2)


def stable_video() -> nn.Module:
    return UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 32),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        layers_per_block=1,
        num_attention_heads=2,
        cross_attention_dim=8,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
    )


def call_video(network: nn.Module, frames: int = 3) -> Tensor:
    if isinstance(network, UNetSpatioTemporalConditionModel):
        return network(noise(1, frames, 8, 16, 16), 1, noise(1, 1, 8), torch.ones(1, 3), return_dict=False)[0]
    texts = noise(frames if isinstance(network, UNetMotionModel) else 1, 3, 8)
    return network(noise(1, 4, frames, 16, 16), 1, texts, return_dict=False)[0]
