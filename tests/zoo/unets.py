"""Tiny UNets of diffusers, built from configurations alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from catome_bench.models.untrained import TOKENS_PER_CLASS
from zoo.noise import each_sample, filled, seeded

TEXT_WIDTH = 8
CLASSES = ("cat", "dog")


def sd_unet(**changes: Any) -> UNet2DConditionModel:
    """Shaped like SD1: self-attention from the top level down to the middle, at levels 1, 2 and 4."""
    config = {
        "sample_size": 16,
        "block_out_channels": (8, 16, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 2,
        "cross_attention_dim": TEXT_WIDTH,
        "norm_num_groups": 4,
    }
    with seeded():
        return UNet2DConditionModel(**config | changes).eval()


def sdxl_unet(**changes: Any) -> UNet2DConditionModel:
    """Shaped like SDXL: no attention at the top level, several blocks to a transformer, embedded sizes."""
    config = {
        "block_out_channels": (8, 8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 1),
        "cross_attention_dim": 2 * TEXT_WIDTH,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": TEXT_WIDTH + 6 * 8,
    }
    return sd_unet(**config | changes)


def deep_unet() -> UNet2DConditionModel:
    """A transformer of three blocks at level 2, and one of one block at level 4, on the way down alone."""
    ends = {"up_block_types": ("UpBlock2D",) * 3, "mid_block_type": None}
    return sdxl_unet(transformer_layers_per_block=(1, 3, 1), **ends)


def small_unet() -> UNet2DConditionModel:
    """One level, with a transformer of three blocks, and nothing else."""
    ends = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("UpBlock2D",), "mid_block_type": None}
    return sdxl_unet(block_out_channels=(8,), transformer_layers_per_block=(3,), **ends)


def shallow_unet(**changes: Any) -> UNet2DConditionModel:
    """Self-attention at the top level of two, and nowhere else."""
    config = {
        "block_out_channels": (8, 8),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "mid_block_type": None,
    }
    return sd_unet(**config | changes)


def class_unet(**changes: Any) -> UNet2DConditionModel:
    """The smallest network that the class-conditional pipeline can drive."""
    config = {
        "in_channels": 12,
        "out_channels": 12,
        "encoder_hid_dim": TOKENS_PER_CLASS * (len(CLASSES) + 1),
        "encoder_hid_dim_type": "text_proj",
    }
    return shallow_unet(**config | changes)


def controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet for the autoencoder below, with closing convolutions that are not zero: what it computes is seen."""
    with seeded(1):
        net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8)).eval()
        return filled(net, "controlnet_down_blocks", std=0.3)


def conditions(unet: nn.Module, batch: int) -> dict[str, Any]:
    """The network's arguments beside the sample and the timestep: another text for every sample."""
    inputs: dict[str, Any] = {"encoder_hidden_states": each_sample(batch, 3, unet.config.cross_attention_dim)}
    if unet.config.addition_embed_type == "text_time":
        sizes = torch.tensor([[32, 32, 0, 0, 32, 32]]).expand(batch, -1)
        inputs["added_cond_kwargs"] = {"text_embeds": each_sample(batch, TEXT_WIDTH), "time_ids": sizes}
    return inputs


def predict(unet: nn.Module, sample: Tensor, timestep: int = 500, **options: Any) -> Tensor:
    """One call of a bare network, in the format of its weights."""
    inputs = conditions(unet, len(sample)) | options
    inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"].to(unet.dtype)
    return unet(sample.to(unet.dtype), timestep, **inputs, return_dict=False)[0]


@dataclass(frozen=True)
class Unet:
    """A kind of UNet; the same methods as `Architecture`."""

    build: Callable[..., UNet2DConditionModel]

    def network(self, **changes: Any) -> UNet2DConditionModel:
        return self.build(**changes)

    def predict(
        self, network: Any, *, batch: int = 2, size: tuple[int, ...] = (16, 16), seed: int = 0, **changes: Any
    ) -> Tensor:
        """One call, with gradients; `changes` are arguments of the network."""
        return predict(network, each_sample(batch, network.config.in_channels, *size, seed=seed), **changes)

    @torch.no_grad()
    def call(self, network: nn.Module, **options: Any) -> Tensor:
        """The same without gradients."""
        return self.predict(network, **options)


SD, SDXL = Unet(sd_unet), Unet(sdxl_unet)
DEEP, SMALL = Unet(deep_unet), Unet(small_unet)
