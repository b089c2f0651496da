"""Through the public API: exactly two graphs a rung, no break, no recompile, and the results of eager."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from catome_core import (
    PAPER_SCHEDULES,
    AdaptiveMerge,
    MergedBlock,
    PairCache,
    TokenGrid,
    attention_bias,
    fit_capacity,
    merge,
    unmerge,
)
from tiers import tiered
from zoo.noise import seeded

GRID = TokenGrid((8, 8))
STEPS = 50
SCHEDULE = PAPER_SCHEDULES["config_3"]
LADDER = (0.25, 0.5)

pytestmark = pytest.mark.usefixtures("fresh_compiler", "without_gradients")


class Attention(nn.Module):
    """A residual self-attention block of a user's own."""

    def __init__(self, channels=32, heads=4):
        super().__init__()
        self.heads, self.qkv = heads, nn.Linear(channels, 3 * channels)

    def forward(self, x, attn_mask=None):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return x + F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask).transpose(1, 2).flatten(2)


def network_of(policy, blocks=2):
    caches = [PairCache(policy, torch.Generator().manual_seed(0)) for _ in range(blocks)]
    with seeded():
        attentions = [Attention() for _ in caches]
    merged = [
        MergedBlock(attention, cache, GRID, mask_argument="attn_mask", proportional=True)
        for attention, cache in zip(attentions, caches, strict=True)
    ]
    for cache in caches:
        cache.allocate(2, GRID)
    return nn.Sequential(*merged), caches


def tokens_of(step):
    """Fresh tokens for every step, alike for ten steps and unlike for the next ten."""
    generator = torch.Generator().manual_seed(step)
    common = torch.randn(2, 1, 32, generator=generator) * (4.0 if step % 20 < 10 else 0.0)
    return common + torch.randn(2, GRID.tokens, 32, generator=generator)


def run(network, caches, compiled, fit=False):
    """Both networks through a run, in step; the capacities in use, step by step."""
    eager, eager_caches = copy.deepcopy(network), None
    eager_caches = [block.cache for block in eager]
    capacities = []
    for step in range(STEPS):
        checkpoint = SCHEDULE.is_checkpoint(step)
        for cache in (*caches, *eager_caches):
            cache.begin_step(checkpoint)
        capacities.append(caches[0].capacity)
        torch.testing.assert_close(compiled(tokens_of(step)), eager(tokens_of(step)))
        if fit and checkpoint:
            for group in (caches, eager_caches):
                fit_capacity(group, LADDER)
    return capacities


@pytest.mark.parametrize(
    ("destination", "spare"), tiered([("top-left", "pad"), ("rotate", "fill"), ("random", "pad")], [("rotate", "fill")])
)
def test_fifty_steps_of_fresh_data_take_two_graphs(destination, spare):
    network, caches = network_of(AdaptiveMerge(0.5, capacity=0.5, spare=spare, destination=destination))
    counter = CompileCounter()
    run(network, caches, torch.compile(network, fullgraph=True, backend=counter))
    assert counter.frame_count == 2


@pytest.mark.thorough
def test_no_recompile_once_both_graphs_are_there():
    network, caches = network_of(AdaptiveMerge(0.5))
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    for refresh in (True, False):
        for cache in caches:
            cache.refresh = refresh
        compiled(tokens_of(0))
    with torch._dynamo.config.patch(error_on_recompile=True):
        run(network, caches, compiled)


@pytest.mark.thorough
def test_every_rung_takes_one_more_pair_of_graphs():
    network, caches = network_of(AdaptiveMerge(0.5))
    counter = CompileCounter()
    capacities = run(network, caches, torch.compile(network, fullgraph=True, backend=counter), fit=True)
    changes = sum(before != after for before, after in itertools.pairwise(capacities))
    assert changes >= 2, f"the data never moved the rung: {capacities}"
    assert counter.frame_count <= 2 * len(set(capacities))


@pytest.mark.thorough
def test_a_second_run_through_the_same_rungs_compiles_nothing():
    network, caches = network_of(AdaptiveMerge(0.5))
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    first = run(network, caches, compiled, fit=True)
    for cache in caches:
        cache.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert run(network, caches, compiled, fit=True) == first


def test_inductor_agrees_with_eager():
    # Its kernels are compiled in C++ for each block.
    network, caches = network_of(AdaptiveMerge(0.5, capacity=0.25), blocks=1)
    run(network, caches, torch.compile(network, fullgraph=True))


def test_memory_of_a_plan_never_moves():
    """CUDA graphs replay addresses: neither a refresh nor another rung may move a buffer."""
    network, caches = network_of(AdaptiveMerge(0.5))
    addresses = [buffer.data_ptr() for cache in caches for buffer in cache.buffers()]
    run(network, caches, network, fit=True)
    assert addresses == [buffer.data_ptr() for cache in caches for buffer in cache.buffers()]


class Stateless(nn.Module):
    """Match, plan, merge, bias and unmerge in one graph."""

    def forward(self, x):
        plan = AdaptiveMerge(0.5, capacity=0.5)(x, GRID)
        return unmerge(merge(x, plan), plan), attention_bias(plan, dtype=x.dtype, proportional=True)


def test_export_of_the_stateless_path():
    exported = torch.export.export(Stateless(), (tokens_of(0),)).module()
    for step in range(3):
        torch.testing.assert_close(exported(tokens_of(step)), Stateless()(tokens_of(step)))


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_cuda_graph_replays_what_eager_computes(recompute):
    network, caches = network_of(AdaptiveMerge(0.5, capacity=0.5))
    network.cuda()
    for cache in caches:
        cache.allocate(2, GRID, "cuda")
    tokens = tokens_of(0).cuda()
    for cache in caches:
        cache.refresh = True
    network(tokens)
    for cache in caches:
        cache.refresh = recompute
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        network(tokens)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = network(tokens)
    for step in range(3):
        tokens.copy_(tokens_of(step))
        graph.replay()
        replayed = result.clone()
        torch.testing.assert_close(replayed, network(tokens))
