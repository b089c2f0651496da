"""Changes that other libraries make to a network, before a session is attached or after."""

from collections.abc import Sequence
from typing import Any

from diffusers import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from zoo.noise import seeded

PROJECTIONS = ("to_q", "to_k", "to_v")


def add_lora(network: nn.Module, layers: Sequence[str] | str = PROJECTIONS) -> None:
    """LoRA in the layers of these names, or whose names match the expression."""
    layers = layers if isinstance(layers, str) else list(layers)
    with seeded(1):
        inject_adapter_in_model(LoraConfig(r=2, init_lora_weights=False, target_modules=layers), network)


def add_unet_lora(unet: UNet2DConditionModel) -> None:
    with seeded(1):
        unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=[*PROJECTIONS, "to_out.0"]))


def fuse_projections(network: Any) -> None:
    network.fuse_qkv_projections()


def quantize(network: nn.Module) -> None:
    quantize_(network, Int8WeightOnlyConfig())
