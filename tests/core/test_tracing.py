"""Shape inference and tracing leave a cache as it was."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from catome_core import AdaptiveMerge, MergedBlock, PairCache, TokenGrid
from strategies import make_tokens
from tiers import tiered

GRID = TokenGrid((4, 4), prefix=1)

# Of the network's own, which exist only while it is traced.
pytestmark = pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")


def tokens_of(seed: int) -> Tensor:
    return make_tokens("normal", (2, GRID.tokens, 4), torch.Generator().manual_seed(seed)).float()


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        cache = PairCache(AdaptiveMerge(0.2, capacity=0.25, spare="fill", destination="rotate"))
        self.block = MergedBlock(nn.Identity(), cache, GRID)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.block(tokens).square()


def in_fake_mode(network: Network, tokens: Tensor) -> Any:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return network(mode.from_tensor(tokens))


WAYS: dict[str, Callable[[Network, Tensor], Any]] = {
    "export": lambda network, tokens: torch.export.export(network, (tokens,)),
    "strict export": lambda network, tokens: torch.export.export(network, (tokens,), strict=True),
    "fake tensors": in_fake_mode,
    "make_fx": lambda network, tokens: make_fx(network, tracing_mode="fake", _allow_non_fake_inputs=True)(tokens),
    "meta tensors": lambda network, tokens: network(tokens.to("meta")),
}


def state(cache: PairCache) -> tuple[Any, ...]:
    flags = cache.key, cache.has_plan, cache.refresh, cache.capacity, cache.is_identity, cache.borrowed
    return *flags, cache.storage.slots, [(type(buffer), buffer.tolist()) for buffer in cache.buffers()]


WHEN = ("first", "at a checkpoint", "at a reuse", "after reset", "for another batch")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("when", tiered(WHEN, ["at a checkpoint"]))
def test_call_without_values_leaves_no_trace(way, when):
    network = Network()
    cache = network.block.cache
    if when != "first":
        network(tokens_of(0))
        cache.begin_step("checkpoint" in when)
    if "reset" in when:
        cache.reset()
    before = state(cache)
    with torch.no_grad():
        WAYS[way](network, tokens_of(1)[: 1 if "batch" in when else 2])
    assert state(cache) == before
    assert type(network(tokens_of(2))) is Tensor


@pytest.mark.parametrize("strict", [False, True])
def test_exported_network_plans_anew_for_every_input(strict):
    network = Network()
    network(tokens_of(0))
    program = torch.export.export(network, (tokens_of(0),), strict=strict)
    assert not program.run_decompositions({}).graph_signature.buffers_to_mutate
    exported = program.module()
    for seed in range(3):
        network.block.cache.reset()
        assert torch.equal(exported(tokens_of(seed)), network(tokens_of(seed)))


def test_jit_trace_is_refused_with_what_to_do():
    with pytest.raises(RuntimeError, match=r"torch\.jit\.trace.*torch\.export\.export"):
        torch.jit.trace(Network(), tokens_of(0))
