"""Whole denoisers at their real size, with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from catome_adapters import MergeRecipe, attach, find_sites
from catome_bench.contenders import STEPS, Contender, Entrant, fixed_policy, name_ours, phases, twin
from catome_bench.peers import PEERS
from catome_core import CheckpointSchedule

OURS = (("attention", False), ("attention", True), ("keys", True), ("block", True))


class Denoiser(nn.Module):
    """A UNet with everything that it is called with but the latents."""

    def __init__(self, unet: UNet2DConditionModel, batch: int) -> None:
        super().__init__()
        config, like = unet.config, unet.conv_in.weight
        self.unet = unet
        self.text: Tensor
        self.register_buffer("text", like.new_zeros(batch, 77, config.cross_attention_dim), persistent=False)
        self.register_buffer("time", torch.full((batch,), 500, device=like.device), persistent=False)
        self.added: dict[str, Tensor] | None = None
        if config.addition_embed_type == "text_time":
            width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            self.added = {"text_embeds": like.new_zeros(batch, width), "time_ids": like.new_zeros(batch, 6)}

    def forward(self, latents: Tensor) -> Tensor:
        """The predicted noise."""
        given: dict[str, Any] = {"encoder_hidden_states": self.text, "added_cond_kwargs": self.added}
        return self.unet(latents, self.time, **given, return_dict=False)[0]


class Network(NamedTuple):
    """A network, the side of its latents, and the levels at which it merges."""

    config: Mapping[str, Any]
    side: int
    levels: str | tuple[int, ...]


SD15 = {
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
SDXL = {
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

NETWORKS: Mapping[str, Network] = MappingProxyType(
    {
        "sd15-512": Network(SD15, 64, (1,)),
        "sd15-1024": Network(SD15, 128, (1,)),
        "sdxl-1024": Network(SDXL, 128, "all"),
    }
)
"""Stable Diffusion 1.5 merges at the level with the most tokens, as Token Merging does; SDXL everywhere."""

SMALL_NETWORKS = ("sd15-512",)
"""Those that a processor bears."""


def enter_network(network: Network, device: str, dtype: torch.dtype, batch: int = 2) -> dict[str, Entrant]:
    """The network as it is, ours with half of the tokens merged, and the peers."""
    denoiser = Denoiser(build(network.config, device, dtype), batch)
    latents = torch.randn(batch, 4, network.side, network.side, device=device, dtype=dtype)
    ours = {name_ours(*one): partial(_ours, denoiser, latents, network.levels, *one) for one in OURS}
    peers = {name: partial(_peer, denoiser, latents, name) for name in ("tomesd", "ToDo")}
    return {"unpatched": lambda stack: Contender(twin(denoiser), (latents,))} | ours | peers


def build(config: Mapping[str, Any], device: str, dtype: torch.dtype) -> UNet2DConditionModel:
    """A network with random weights of the size that keeps its values finite, made where it will run."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, **config)
    # diffusers' own `to` warns of any dtype.
    unet = nn.Module.to(unet, dtype).to_empty(device=device).eval().requires_grad_(False)
    torch.manual_seed(0)
    for name, weight in unet.named_parameters():
        if weight.ndim > 1:
            weight.normal_(std=weight[0].numel() ** -0.5)
        else:
            weight.fill_(float(name.endswith("weight")))
    return unet


def _ours(
    denoiser: nn.Module, latents: Tensor, levels: Any, scope: Any, proportional: bool, stack: ExitStack
) -> Contender:
    patched = twin(denoiser)
    wanted = tuple({site.level for site in find_sites(patched)}) if levels == "all" else levels
    recipe = MergeRecipe(fixed_policy(), CheckpointSchedule.every(2, STEPS), scope, proportional, wanted)
    return Contender(patched, (latents,), phases(stack.enter_context(attach(patched, recipe))))


def _peer(denoiser: nn.Module, latents: Tensor, name: str, stack: ExitStack) -> Contender:
    patched = twin(denoiser)
    stack.enter_context(PEERS[name](patched))
    return Contender(patched, (latents,))
