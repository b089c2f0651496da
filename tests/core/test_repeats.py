"""Gradient checkpointing repeats calls in the backward pass: each with the plan it had, and without a trace."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from catome_core import AdaptiveMerge, CallMemory, MergedBlock, PairCache, TokenGrid
from strategies import make_tokens

GRID = TokenGrid((4, 4))
POLICY = AdaptiveMerge(threshold=0.2, destination="rotate")


def tokens_of(step: int) -> Tensor:
    return make_tokens("clusters", (2, GRID.tokens, 4), torch.Generator().manual_seed(step))


def network() -> nn.ModuleList:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.TransformerEncoderLayer(4, 2, 8, dropout=0, batch_first=True).double() for _ in range(2)]
    return nn.ModuleList(MergedBlock(layer, PairCache(POLICY), GRID, proportional=True) for layer in layers)


def run(blocks: nn.ModuleList, checkpointed: bool) -> tuple[Tensor, Tensor]:
    """The result of four steps, two of them checkpoints, and the gradient of what they began with."""
    start = tokens_of(0).requires_grad_()
    tokens = start
    for step in range(4):
        for block in blocks:
            block.cache.begin_step(step % 2 == 0)
            tokens = checkpoint(block, tokens, use_reentrant=False) if checkpointed else block(tokens)
        tokens = tokens + tokens_of(step)
    return tokens, torch.autograd.grad(tokens.square().mean(), start)[0]


def test_calls_of_several_steps_are_repeated_with_their_own_plans():
    stored, repeated = network(), network()
    assert all(map(torch.equal, run(repeated, checkpointed=True), run(stored, checkpointed=False)))
    for one, other in zip(stored, repeated, strict=True):
        assert all(map(torch.equal, one.cache.buffers(), other.cache.buffers())), "a repetition leaves no trace"
        assert one.cache.refresh == other.cache.refresh


@pytest.mark.parametrize("wrong", ["reentrant", "part of the block", "twice with one tensor"])
def test_repetition_of_an_unknown_call_is_refused(wrong):
    block, tokens = network()[0], tokens_of(0).requires_grad_()
    if wrong == "reentrant":
        result = checkpoint(block, tokens, use_reentrant=True)
    elif wrong == "part of the block":
        result = checkpoint(lambda values: block(values + 1), tokens, use_reentrant=False)
    else:
        result = sum(checkpoint(block, tokens, use_reentrant=False) for _ in range(2))
    with pytest.raises(RuntimeError, match=r"the cache was called in a backward pass.*use_reentrant=False"):
        result.sum().backward()


def test_what_was_decided_lives_as_long_as_the_tensor_and_is_not_copied():
    memory, tensor = CallMemory[str](), torch.ones(2)
    memory.remember(tensor, "plan")
    assert memory.recall(tensor) == "plan" and memory.recall(tensor.clone()) is None
    for copied in (copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        assert copied.recall(tensor) is None
    del tensor
    assert not memory._decisions


def test_calls_without_gradients_are_not_remembered():
    cache, tokens = PairCache(POLICY), tokens_of(0)
    with torch.no_grad():
        cache(tokens, GRID)
    assert cache.calls.recall(tokens) is None
    cache(tokens, GRID)
    assert cache.calls.recall(tokens) is not None
