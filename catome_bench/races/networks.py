"""Whole denoisers at their real size, with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from catome_adapters import attach, find_sites
from catome_bench.measure.contender import Contender, MakeContender
from catome_bench.races.contenders import LATTICES, Entry, our_entries
from catome_bench.races.hosts import twin
from catome_bench.races.peers import PEERS

OURS = ("attention", *(f"{scope}, proportional" for scope in ("attention", "keys", "block")), *LATTICES)


class Denoiser(nn.Module):
    """A UNet with all of its arguments but the latents."""

    text: Tensor
    time: Tensor

    def __init__(self, unet: UNet2DConditionModel, batch: int) -> None:
        super().__init__()
        config, like = unet.config, unet.conv_in.weight
        self.unet = unet
        self.register_buffer("text", like.new_zeros(batch, 77, config["cross_attention_dim"]), persistent=False)
        self.register_buffer("time", torch.full((batch,), 500, device=like.device), persistent=False)
        self.added: dict[str, Tensor] | None = None
        if config["addition_embed_type"] == "text_time":
            width = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
            self.added = {"text_embeds": like.new_zeros(batch, width), "time_ids": like.new_zeros(batch, 6)}

    def forward(self, latents: Tensor) -> Tensor:
        """Predict the noise of latents (batch, channels, height, width)."""
        given: dict[str, Any] = {"encoder_hidden_states": self.text, "added_cond_kwargs": self.added}
        return self.unet(latents, self.time, **given, return_dict=False)[0]


class Network(NamedTuple):
    """A network to build.

    Attributes:
        config: Arguments of the UNet.
        side: Height and width of its latents.
        levels: The levels at which it merges.
    """

    config: Mapping[str, Any]
    side: int
    levels: Literal["all"] | tuple[int, ...]


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
"""Stable Diffusion 1.5 merges at the level with the most tokens, as Token Merging does; SDXL at every level."""

SMALL_NETWORKS = ("sd15-512",)
"""The networks that are small enough for a CPU."""


def network_contenders(network: Network, device: str, dtype: torch.dtype, batch: int = 2) -> dict[str, MakeContender]:
    """The unpatched network, ours with half of the tokens merged, and the peers, by name."""
    denoiser = Denoiser(build(network.config, device, dtype), batch)
    latents = torch.randn(batch, 4, network.side, network.side, device=device, dtype=dtype)
    entries = our_entries()
    ours = {name: partial(_make_ours, denoiser, latents, network.levels, entries[name]) for name in OURS}
    peers = {name: partial(_make_peer, denoiser, latents, name) for name in ("tomesd", "ToDo")}
    return {"unpatched": lambda stack: Contender(twin(denoiser), (latents,))} | ours | peers


def build(config: Mapping[str, Any], device: str, dtype: torch.dtype) -> UNet2DConditionModel:
    """A network on its device, with random weights that are scaled so that its values stay finite."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, **config)
    # Not diffusers' own `to`, which warns for every dtype.
    nn.Module.to(unet, dtype)
    unet.to_empty(device=device).eval().requires_grad_(False)
    torch.manual_seed(0)
    for name, weight in unet.named_parameters():
        if weight.ndim > 1:
            weight.normal_(std=weight[0].numel() ** -0.5)
        else:
            weight.fill_(float(name.endswith("weight")))
    return unet


def _make_ours(
    denoiser: Denoiser,
    latents: Tensor,
    levels: Literal["all"] | tuple[int, ...],
    one: Entry,
    stack: ExitStack,
) -> Contender:
    patched = twin(denoiser)
    every = tuple({site.level for site in find_sites(patched)})
    recipe = replace(one.recipe, levels=every if levels == "all" else levels)
    return Contender(patched, (latents,), one.phases(stack.enter_context(attach(patched, recipe))))


def _make_peer(denoiser: Denoiser, latents: Tensor, name: str, stack: ExitStack) -> Contender:
    patched = twin(denoiser)
    stack.enter_context(PEERS[name](patched))
    return Contender(patched, (latents,))
