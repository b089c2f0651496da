"""Denoisers of well-known models with random weights, each with all of its arguments but the latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from catome_bench.races.hosts import Conditions

SD15: Mapping[str, Any] = {
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
SDXL: Mapping[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
FEWER_FLUX_BLOCKS: Mapping[str, Any] = {"num_layers": 2, "num_single_layers": 4}
"""Of 19 and 38, in the same proportion: all are alike."""
FEWER_WAN_BLOCKS: Mapping[str, Any] = {
    "num_layers": 3,
    "num_attention_heads": 12,
    "attention_head_dim": 128,
    "ffn_dim": 8960,
}
"""Of the 30 of Wan 2.1 1.3B: all are alike."""


class Denoiser(nn.Module):
    """A network and its conditions."""

    def __init__(self, network: nn.Module, **conditions: Tensor) -> None:
        super().__init__()
        self.network, self.conditions = network, Conditions(**conditions)

    def forward(self, latents: Tensor) -> Tensor:
        """Predict the noise of latents."""
        return self.network(latents, **self.arguments(self.conditions.values()), return_dict=False)[0]

    def arguments(self, conditions: dict[str, Any]) -> dict[str, Any]:
        """The network's keyword arguments."""
        return conditions


class UNetDenoiser(Denoiser):
    """A UNet of Stable Diffusion, for latents (batch, 4, height, width)."""

    def arguments(self, conditions: dict[str, Any]) -> dict[str, Any]:
        """What SDXL adds goes into a dictionary."""
        added = {name: conditions.pop(name) for name in ("text_embeds", "time_ids") if name in conditions}
        return conditions | {"added_cond_kwargs": added}


def build_unet_denoiser(config: Mapping[str, Any], batch: int = 2) -> UNetDenoiser:
    """A UNet, by default for one picture with guidance."""
    unet = UNet2DConditionModel(sample_size=64, **config)
    given = {"encoder_hidden_states": torch.zeros(batch, 77, config["cross_attention_dim"])}
    if config.get("addition_embed_type") == "text_time":
        width = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        given |= {"text_embeds": torch.zeros(batch, width), "time_ids": torch.zeros(batch, 6)}
    return UNetDenoiser(unet, timestep=torch.full((batch,), 500), **given)


def build_flux_denoiser(config: Mapping[str, Any], side: int = 64, text: int = 512) -> Denoiser:
    """A Flux transformer for packed latents (1, side * side, 64); its guidance is a number, so the batch is one."""
    network: Any = FluxTransformer2DModel(guidance_embeds=True, **config)
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.stack([torch.zeros_like(row), row, column], -1).flatten(0, 1)
    return Denoiser(
        network,
        encoder_hidden_states=torch.zeros(1, text, network.config.joint_attention_dim),
        pooled_projections=torch.zeros(1, network.config.pooled_projection_dim),
        timestep=torch.full((1,), 0.5),
        guidance=torch.full((1,), 3.5),
        img_ids=places.float(),
        txt_ids=torch.zeros(text, 3),
    )


def build_wan_denoiser(config: Mapping[str, Any], text: int = 512) -> Denoiser:
    """A transformer of Wan for latents (1, 16, frames, height, width): its pipeline calls it once for either prompt."""
    network: Any = WanTransformer3DModel(**config)
    states = torch.zeros(1, text, network.config.text_dim)
    return Denoiser(network, timestep=torch.full((1,), 500), encoder_hidden_states=states)
