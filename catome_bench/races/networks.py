"""Whole denoisers at their real size, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from catome_adapters import RECIPES, attach, find_sites
from catome_adapters.recipes.parts import in_parts
from catome_bench.measure.contender import Contender, MakeContender
from catome_bench.models.artist import unmerged_is_fine
from catome_bench.races.contenders import LATTICES, Entry, lattice_phases, our_entries
from catome_bench.races.denoisers import (
    FEWER_FLUX_BLOCKS,
    FEWER_WAN_BLOCKS,
    SD15,
    SDXL,
    Denoiser,
    build_flux_denoiser,
    build_unet_denoiser,
    build_wan_denoiser,
)
from catome_bench.races.hosts import twin
from catome_bench.races.peers import PEERS

OURS = ("attention", *(f"{scope}, proportional" for scope in ("attention", "keys", "block")), *LATTICES)
NAMED = ("close", "balanced", "fast")
"""As users attach them, where merging is predicted to gain time; here in every step, since a step is what is timed."""


class Network(NamedTuple):
    """A network to build.

    Attributes:
        build: Builds the denoiser, on torch's default device.
        latents: Their shape.
        levels: The levels at which it merges.
        peers: Those that fit it.
    """

    build: Callable[[], Denoiser]
    latents: tuple[int, ...]
    levels: Literal["all"] | tuple[int, ...] = "all"
    peers: tuple[str, ...] = ()


UNET_PEERS = ("tomesd", "ToDo")

NETWORKS: Mapping[str, Network] = MappingProxyType(
    {
        "sd15-512": Network(partial(build_unet_denoiser, SD15), (2, 4, 64, 64), (1,), UNET_PEERS),
        "sd15-1024": Network(partial(build_unet_denoiser, SD15), (2, 4, 128, 128), (1,), UNET_PEERS),
        "sdxl-1024": Network(partial(build_unet_denoiser, SDXL), (2, 4, 128, 128), peers=UNET_PEERS),
        "flux-1024": Network(partial(build_flux_denoiser, FEWER_FLUX_BLOCKS), (1, 4096, 64)),
        "wan-480p": Network(partial(build_wan_denoiser, FEWER_WAN_BLOCKS), (1, 16, 21, 60, 104)),
    }
)
"""Stable Diffusion 1.5 merges at the level with the most tokens, as Token Merging does; the others at every level."""

SMALL_NETWORKS = ("sd15-512",)
"""The networks that are small enough for a CPU."""


def network_contenders(network: Network, device: str, dtype: torch.dtype) -> dict[str, MakeContender]:
    """The unpatched network, ours with half of the tokens merged, the named recipes, and the peers, by name."""
    denoiser = build(network, device, dtype)
    latents = torch.randn(network.latents, device=device, dtype=dtype)
    entries = our_entries()
    ours = {name: partial(_make_ours, denoiser, latents, network.levels, entries[name]) for name in OURS}
    named = {name: partial(_make_named, denoiser, latents, name) for name in NAMED}
    peers = {name: partial(_make_peer, denoiser, latents, name) for name in network.peers}
    return {"unpatched": lambda stack: Contender(twin(denoiser), (latents,))} | named | ours | peers


def build(network: Network, device: str, dtype: torch.dtype) -> Denoiser:
    """A denoiser on its device, with random weights that are scaled so that its values stay finite."""
    with torch.device(device):
        denoiser = network.build()
    # Not diffusers' own `to`, which warns for every dtype.
    nn.Module.to(denoiser, dtype).eval().requires_grad_(False)
    torch.manual_seed(0)
    for name, weight in denoiser.network.named_parameters():
        if weight.ndim > 1:
            weight.normal_(std=weight[0].numel() ** -0.5)
        else:
            weight.fill_(float(name.endswith("weight")))
    return denoiser


def _make_ours(
    denoiser: Denoiser,
    latents: Tensor,
    levels: Literal["all"] | tuple[int, ...],
    one: Entry,
    stack: ExitStack,
) -> Contender:
    patched = twin(denoiser)
    every = tuple({site.level for site in find_sites(patched.network)})
    recipe = replace(one.recipe, levels=every if levels == "all" else levels)
    return Contender(patched, (latents,), one.phases(stack.enter_context(attach(patched.network, recipe))))


def _make_named(denoiser: Denoiser, latents: Tensor, name: str, stack: ExitStack) -> Contender:
    patched = twin(denoiser)
    # The cells of most steps, in every step.
    *_, last = in_parts(replace(RECIPES[name], during=(0.0, 1.0)))
    with unmerged_is_fine():
        session = stack.enter_context(attach(patched.network, replace(last, during=(0.0, 1.0))))
    return Contender(patched, (latents,), lattice_phases(session))


def _make_peer(denoiser: Denoiser, latents: Tensor, name: str, stack: ExitStack) -> Contender:
    patched = twin(denoiser)
    stack.enter_context(PEERS[name](patched.network))
    return Contender(patched, (latents,))
