"""A sequence that two processes share: blocks of one's own, and diffusers' context parallelism, by gloo on the CPU."""

import os
import re
import socket
import warnings
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from torch import Tensor, multiprocessing, nn
from torch.nn.functional import scaled_dot_product_attention

import architectures
from architectures import ARCHITECTURES
from catome_adapters import MergeRecipe, attach, find_sites
from catome_adapters.parallel import RankGrid
from catome_core import AdaptiveMerge, CheckpointSchedule, MergedBlock, PairCache, TokenGrid
from models import noise

RANKS, STEPS = 2, 2
# Text is shared as well, where image and text are attended to together.
TEXT = 6
# Whole rows for every rank, and for the video whole frames.
SIZES = {"Flux": (8, 8), "Qwen-Image": (8, 8), "Wan": (2, 12, 12)}
# The first block of these splits the sequence itself.
LEFT_OUT = {"Flux": [], "Qwen-Image": ["transformer_blocks.0"], "Wan": ["blocks.0"]}
SCOPES = ("attention", "block")
CASES = [(name, scope) for name in SIZES for scope in SCOPES]

# All of a cell becomes one: then a rank needs to know no other rank's tokens.
CELLS = AdaptiveMerge(threshold=-1.0, capacity=0.0, radius=0, spare="fill")
POLICY = AdaptiveMerge(threshold=0.0, capacity=0.25, spare="fill")


def make_recipe(scope: str = "attention", policy: AdaptiveMerge = POLICY, *, proportional: bool = False) -> MergeRecipe:
    return MergeRecipe(policy, CheckpointSchedule((0,), of=STEPS), scope, proportional, levels="all")


REFUSED = {
    "ladder": make_recipe(policy=replace(POLICY, capacity=None)),
    "padding": make_recipe(policy=replace(POLICY, spare="pad")),
    "proportional": make_recipe(proportional=True),
    "keys": make_recipe("keys"),
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


def merged_block(block: nn.Module, policy: AdaptiveMerge, shape: tuple[int, int]) -> MergedBlock:
    return MergedBlock(block, PairCache(policy), TokenGrid(shape))


def build(name: str) -> nn.Module:
    """Two layers more than usual, so that blocks remain where the first is left out."""
    return ARCHITECTURES[name].network(num_layers=3)


@torch.no_grad()
def run(name: str, network: nn.Module, session: Any = None) -> list[Tensor]:
    """A step that recomputes and one that reuses."""
    predictions = []
    for step in range(STEPS):
        if session is not None:
            session.begin_step(step, STEPS)
        predictions.append(ARCHITECTURES[name].call(network, size=SIZES[name], seed=step))
    return predictions


# In the processes that share a sequence.


def work(rank: int, port: int, folder: str) -> None:
    """What a rank sees, for the tests to compare."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=RANKS, timeout=timedelta(minutes=2))
    architectures.TEXT = TEXT
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
    block = merged_block(SharedBlock(), POLICY, (4, 8))
    slots = block.cache(part, block.grid).size.shape[1]
    return {"slots": slots, "merged": block(part), "cells": merged_block(SharedBlock(), CELLS, (4, 8))(part)}


def shared(name: str) -> nn.Module:
    network = build(name)
    network.enable_parallelism(config=ContextParallelConfig(ulysses_degree=RANKS))
    return network


def networks(name: str, scope: str) -> dict[str, Any]:
    network = shared(name)
    seen: dict[str, Any] = {"unmerged": run(name, network)}
    with attach(network, make_recipe(scope, CELLS)) as session:
        seen["cells"] = run(name, network, session)
    with attach(network, make_recipe(scope)) as session:
        seen["merged"] = run(name, network, session)
        seen["slots"] = [plan.size.shape[1] for plan in session.plans().values()]
        seen["report"], seen["sites"] = session.report(), [site.name for site in session.sites]
    seen["again"] = run(name, network)
    return seen


def error_of(action: Any) -> str:
    try:
        action()
    except ValueError as error:
        return str(error)
    return "nothing"


def refusals() -> dict[str, str]:
    network, video = shared("Flux"), shared("Wan")
    errors = {name: error_of(lambda recipe=recipe: attach(network, recipe)) for name, recipe in REFUSED.items()}
    errors["first block"] = error_of(lambda: attach(video, make_recipe(), sites=find_sites(video)[:1]))
    return errors


def late() -> str:
    """Shared after the session was attached."""
    network = build("Flux")
    with attach(network, make_recipe()) as session:
        network.enable_parallelism(config=ContextParallelConfig(ulysses_degree=RANKS))
        return error_of(lambda: session.begin_step(0, STEPS))


# The tests.


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(work, (port, str(folder)), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.fixture(autouse=True)
def even_text(monkeypatch) -> None:
    monkeypatch.setattr(architectures, "TEXT", TEXT)


def assert_close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_blocks_on_equal_slices_have_as_many_slots_on_every_rank(ranks):
    halves = image().split(32, 1)
    kept = [(AdaptiveMerge(0.7)(half, TokenGrid((4, 8))).size > 0).sum(1) for half in halves]
    # At a capacity of its own, each half would keep another number.
    assert (kept[0] < kept[1]).all()
    slots = [rank["block"]["slots"] for rank in ranks]
    assert slots[0] == slots[1] < 32


def test_block_of_ones_own_is_the_same_on_two_ranks_as_on_one(ranks):
    with torch.no_grad():
        expected = merged_block(WholeBlock(), CELLS, (8, 8))(image())
    assert_close(torch.cat([rank["block"]["cells"] for rank in ranks], 1), expected)
    assert not torch.allclose(expected, WholeBlock()(image()), atol=1e-2)


@pytest.mark.parametrize(("name", "scope"), CASES)
def test_network_is_the_same_on_two_ranks_as_on_one(ranks, name, scope):
    network = build(name)
    unmerged = run(name, network)
    sites = [site for site in find_sites(network) if site.name not in LEFT_OUT[name]]
    with attach(network, make_recipe(scope, CELLS), sites=sites) as session:
        expected = run(name, network, session)
    for rank in ranks:
        assert_close(rank[name, scope]["unmerged"], unmerged)
        assert_close(rank[name, scope]["cells"], expected)
    assert not torch.allclose(expected[0], unmerged[0], atol=1e-2)


@pytest.mark.parametrize(("name", "scope"), CASES)
def test_ranks_have_as_many_slots_and_the_same_picture(ranks, name, scope):
    first, second = (rank[name, scope] for rank in ranks)
    assert first["slots"] == second["slots"]
    assert_close(first["merged"], second["merged"])
    assert all(prediction.isfinite().all() for prediction in first["merged"])
    assert not torch.allclose(first["merged"][0], first["unmerged"][0], atol=1e-3)
    assert_close(first["again"], first["unmerged"])


@pytest.mark.parametrize("name", SIZES)
def test_report_says_which_blocks_split_the_sequence_themselves(ranks, name):
    seen, found = ranks[0][name, "attention"], {site.name for site in find_sites(build(name))}
    assert found - set(seen["sites"]) == set(LEFT_OUT[name])
    assert ("context parallelism splits the sequence inside" in seen["report"]) == bool(LEFT_OUT[name])


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("ladder", "transformer_blocks.0: with capacity=None ranks would keep different numbers.*a capacity"),
        ("padding", "attention gathers keys of 2 ranks.*spare='fill'.*proportional=False"),
        ("proportional", "attention gathers keys of 2 ranks.*spare='fill'.*proportional=False"),
        ("keys", "attention gathers keys of 2 ranks.*scope='attention' or 'block'"),
        ("first block", "blocks.0: context parallelism splits the sequence inside this block"),
    ],
)
def test_what_cannot_work_on_shared_sequences_is_refused(ranks, case, message):
    assert all(re.search(message, rank["refused"][case]) for rank in ranks)


def test_sharing_that_begins_after_attach_is_refused(ranks):
    assert all("call enable_parallelism() before attach()" in rank["late"] for rank in ranks)


def test_grid_of_a_rank_has_whole_rows_or_is_refused():
    grids = {(4, 6): (2, 6), (2, 4, 6): (1, 4, 6), (3, 4, 6): (6, 6)}
    assert all(RankGrid(lambda _, shape=shape: shape, RANKS)({}) == part for shape, part in grids.items())
    for odd in ((3, 6), (3, 5, 6)):
        with pytest.raises(ValueError, match=r"rows, which 2 ranks cannot share equally.*detach"):
            RankGrid(lambda _, shape=odd: shape, RANKS)({})
