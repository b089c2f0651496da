"""A sequence that two processes share: blocks of one's own, and diffusers' context parallelism, by gloo on the CPU."""

import re
import socket
from typing import Any

import pytest
import torch
from torch import multiprocessing

from catome_adapters import GridSize, attach, find_sites
from catome_adapters.sites.ranks import RankGrid
from catome_core import AdaptiveMerge, TokenGrid
from ranks import CASES, CELLS, RANKS, SIZES, WholeBlock, build, image, merged_block, rank_recipe, run_short, work
from running import assert_same
from zoo.transformers import ALL_ARCHITECTURES

in_two_processes = pytest.mark.thorough
"""Each of which imports all over again."""
# The first block of these splits the sequence itself.
LEFT_OUT = {"Flux": [], "Qwen-Image": ["transformer_blocks.0"], "Wan": ["blocks.0"]}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(work, (port, str(folder)), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@in_two_processes
def test_blocks_on_equal_slices_have_as_many_slots_on_every_rank(ranks):
    halves = image().split(32, 1)
    kept = [(AdaptiveMerge(0.7)(half, TokenGrid((4, 8))).size > 0).sum(1) for half in halves]
    # At a capacity of its own, each half would keep another number.
    assert (kept[0] < kept[1]).all()
    slots = [rank["block"]["slots"] for rank in ranks]
    assert slots[0] == slots[1] < 32


@in_two_processes
def test_block_of_ones_own_is_the_same_on_two_ranks_as_on_one(ranks):
    with torch.no_grad():
        expected = merged_block(WholeBlock(), (8, 8), **CELLS)(image())
    assert_same(torch.cat([rank["block"]["cells"] for rank in ranks], 1), expected, tolerance=1e-5)
    assert not torch.allclose(expected, WholeBlock()(image()), atol=1e-2)


@in_two_processes
@pytest.mark.parametrize(("name", "scope"), CASES)
def test_network_is_the_same_on_two_ranks_as_on_one(ranks, name, scope):
    network = build(name)
    unmerged = run_short(name, network)
    sites = [site for site in find_sites(network) if site.name not in LEFT_OUT[name]]
    with attach(network, rank_recipe(scope, **CELLS), sites=sites) as session:
        expected = run_short(name, network, session)
    for rank in ranks:
        assert_same(rank[name, scope]["unmerged"], unmerged, tolerance=1e-5)
        assert_same(rank[name, scope]["cells"], expected, tolerance=1e-5)
    assert not torch.allclose(expected[0], unmerged[0], atol=1e-2)


@in_two_processes
@pytest.mark.parametrize(("name", "scope"), CASES)
def test_ranks_have_as_many_slots_and_the_same_picture(ranks, name, scope):
    first, second = (rank[name, scope] for rank in ranks)
    assert first["slots"] == second["slots"]
    assert_same(first["merged"], second["merged"], tolerance=1e-5)
    assert all(prediction.isfinite().all() for prediction in first["merged"])
    assert not torch.allclose(first["merged"][0], first["unmerged"][0], atol=1e-3)
    assert_same(first["again"], first["unmerged"], tolerance=1e-5)


@in_two_processes
@pytest.mark.parametrize("name", SIZES)
def test_report_says_which_blocks_split_the_sequence_themselves(ranks, name):
    seen, found = ranks[0][name, "attention"], {site.name for site in find_sites(build(name))}
    assert found - set(seen["sites"]) == set(LEFT_OUT[name])
    assert ("context parallelism splits the sequence inside" in seen["report"]) == bool(LEFT_OUT[name])


@in_two_processes
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


@in_two_processes
def test_sharing_that_begins_after_attach_is_refused(ranks):
    assert all("call enable_parallelism() before attach()" in rank["late"] for rank in ranks)


def test_grid_of_a_rank_has_whole_rows_or_is_refused():
    grids = {(4, 6): (2, 6), (2, 4, 6): (1, 4, 6), (3, 4, 6): (6, 6)}
    assert all(RankGrid(lambda _, shape=shape: shape, RANKS)({}).shape == part for shape, part in grids.items())
    for odd in ((3, 6), (3, 5, 6)):
        with pytest.raises(ValueError, match=r"rows, which 2 ranks cannot share equally.*detach"):
            RankGrid(lambda _, shape=odd: shape, RANKS)({})


def test_reference_images_are_refused():
    """diffusers splits the image together with them, so a rank's tokens would be half of the image, or none of it."""
    with pytest.raises(ValueError, match=r"2 ranks split the image together with 64 tokens .*detach"):
        RankGrid(lambda _: GridSize((8, 8), extra=64), RANKS)({})
    model = ALL_ARCHITECTURES["Flux Kontext"]
    grid_of = find_sites(model.network())[0].grid_of
    with pytest.raises(ValueError, match="reference images"):
        RankGrid(grid_of, RANKS)(model.inputs())
