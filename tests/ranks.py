"""What runs in two processes that share a sequence, for the tests to compare."""

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from catome_adapters import MergeRecipe, attach, find_sites
from catome_core import MergedBlock, PairCache, TokenGrid
from running import ONCE, make_recipe, run
from zoo.noise import noise
from zoo.transformers import ARCHITECTURES

RANKS = 2
# Whole rows for every rank, and for the video whole frames.
SIZES = {"Flux": (8, 8), "Qwen-Image": (8, 8), "Wan": (2, 12, 12)}
# Text is shared as well, where image and text are attended to together.
MODELS = {name: replace(ARCHITECTURES[name], text=6) for name in SIZES}
CASES = [(name, scope) for name in SIZES for scope in ("attention", "block")]
# All of a cell becomes one: then a rank needs no other rank's tokens.
CELLS = {"threshold": -1.0, "capacity": 0.0, "radius": 0}


def rank_recipe(scope: str = "attention", **options: Any) -> MergeRecipe:
    return make_recipe(scope, **{"spare": "fill", "proportional": False, "schedule": ONCE} | options)


REFUSED = {
    "ladder": rank_recipe(capacity=None),
    "padding": rank_recipe(spare="pad"),
    "proportional": rank_recipe(proportional=True),
    "keys": rank_recipe("keys"),
}


class SharedBlock(nn.Module):
    """Attention to the tokens of all ranks."""

    def forward(self, tokens: Tensor) -> Tensor:
        gathered = [torch.empty_like(tokens) for _ in range(RANKS)]
        dist.all_gather(gathered, tokens.contiguous())
        keys = torch.cat(gathered, 1)[:, None]
        return tokens + scaled_dot_product_attention(tokens[:, None], keys, keys)[:, 0]


class WholeBlock(nn.Module):
    """The same in one process."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + scaled_dot_product_attention(tokens[:, None], tokens[:, None], tokens[:, None])[:, 0]


def image() -> Tensor:
    """Two samples of 8 x 8 tokens: those of the upper half are alike, those of the lower are not."""
    return noise(2, 64, 16) + torch.arange(64).lt(32)[:, None] * 9


def merged_block(block: nn.Module, shape: tuple[int, int], **options: float) -> MergedBlock:
    return MergedBlock(block, PairCache(rank_recipe(**options).policy), TokenGrid(shape))


def build(name: str) -> nn.Module:
    """Two layers more than usual, so that blocks remain where the first is left out."""
    return MODELS[name].network(num_layers=3)


def run_short(name: str, network: nn.Module, session: Any = None) -> list[Tensor]:
    """A step that recomputes and one that reuses."""
    return run(MODELS[name], network, session, total=2, size=SIZES[name])


def work(rank: int, port: int, folder: str) -> None:
    """What a rank sees, for the tests to compare."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=RANKS, timeout=timedelta(minutes=2))
    # diffusers places ranks by their accelerator's number, and the processor has none.
    torch.accelerator.device_count = lambda: 1
    seen: dict[Any, Any] = {"block": own_block(rank), "late": late(), "refused": refusals()}
    for name, scope in CASES:
        seen[name, scope] = networks(name, scope)
    torch.save(seen, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@torch.no_grad()
def own_block(rank: int) -> dict[str, Any]:
    part = image()[:, 32 * rank : 32 * (rank + 1)]
    block = merged_block(SharedBlock(), (4, 8))
    slots = block.cache(part, block.grid).size.shape[1]
    return {"slots": slots, "merged": block(part), "cells": merged_block(SharedBlock(), (4, 8), **CELLS)(part)}


def shared(name: str) -> nn.Module:
    network = build(name)
    network.enable_parallelism(config=ContextParallelConfig(ulysses_degree=RANKS))
    return network


def networks(name: str, scope: str) -> dict[str, Any]:
    network = shared(name)
    seen: dict[str, Any] = {"unmerged": run_short(name, network)}
    with attach(network, rank_recipe(scope, **CELLS)) as session:
        seen["cells"] = run_short(name, network, session)
    with attach(network, rank_recipe(scope)) as session:
        seen["merged"] = run_short(name, network, session)
        seen["slots"] = [plan.size.shape[1] for plan in session.plans().values()]
        seen["report"], seen["sites"] = session.report(), [site.name for site in session.sites]
    seen["again"] = run_short(name, network)
    return seen


def error_of(action: Callable[[], Any]) -> str:
    try:
        action()
    except ValueError as error:
        return str(error)
    return "nothing"


def refusals() -> dict[str, str]:
    network, video = shared("Flux"), shared("Wan")
    errors = {name: error_of(lambda recipe=recipe: attach(network, recipe)) for name, recipe in REFUSED.items()}
    errors["first block"] = error_of(lambda: attach(video, rank_recipe(), sites=find_sites(video)[:1]))
    return errors


def late() -> str:
    """Shared after the session was attached."""
    network = build("Flux")
    with attach(network, rank_recipe()) as session:
        network.enable_parallelism(config=ContextParallelConfig(ulysses_degree=RANKS))
        return error_of(lambda: session.begin_step(0, 2))
