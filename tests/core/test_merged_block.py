"""Blocks of one's own with a `MergedBlock` around them."""

import re

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import oracle
from catome_core import LADDER, AdaptiveMerge, MergedBlock, PairCache, TokenGrid
from running import assert_close
from tiers import tiered
from zoo.noise import noise, seeded
from zoo.own_blocks import WIDTH, OwnSoftmax

pytestmark = pytest.mark.usefixtures("fresh_compiler", "without_gradients")


def wrapped(block: nn.Module, policy: AdaptiveMerge, **options) -> MergedBlock:
    cache, grid = PairCache(policy), TokenGrid((8, 8))
    cache.allocate(2, grid)
    return MergedBlock(block, cache, grid, **options).eval()


def encoder_layer() -> nn.Module:
    with seeded():
        return nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True).eval()


def encoder() -> nn.Module:
    return nn.TransformerEncoder(encoder_layer(), 2)


def flat_tokens() -> Tensor:
    image = noise(2, WIDTH, 4, 4).repeat_interleave(2, -1).repeat_interleave(2, -2)
    return image.flatten(2).mT


class Pair(nn.Module):
    """Two layers in one wrapper."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(encoder_layer(), encoder_layer())

    def forward(self, tokens: Tensor, scale: float = 1.0) -> Tensor:
        return self.layers(tokens) * scale


@pytest.mark.parametrize("block", [encoder_layer, Pair])
def test_wrapped_block_of_equal_tokens_loses_nothing(block):
    """Every attention inside takes account of sizes and padding, without an argument for it."""
    module, tokens = block().eval(), flat_tokens()
    merged = wrapped(module, AdaptiveMerge(0.9999, capacity=0.5), proportional=True, residual=False)
    assert_close(merged(tokens), module(tokens))
    assert merged.cache.plan().size.eq(0).any()


@pytest.mark.parametrize("block", tiered([encoder_layer, Pair], [encoder_layer]))
def test_wrapped_block_compiles_to_two_graphs(block):
    merged, counter = wrapped(block(), AdaptiveMerge(0.5, capacity=0.5), proportional=True), CompileCounter()
    compiled = torch.compile(merged, fullgraph=True, backend=counter)
    for step in range(6):
        merged.cache.refresh = step % 3 == 0
        tokens = noise(2, 64, WIDTH, seed=step)
        torch.testing.assert_close(compiled(tokens), merged(tokens))
    assert counter.frame_count == 2


@pytest.mark.parametrize("block", [encoder_layer, encoder])
def test_mask_for_the_tokens_becomes_that_of_the_anchors(block):
    module, tokens = block().eval(), flat_tokens()
    hidden = (torch.arange(64) // 16 == 3).expand(2, -1)  # the last row of cells
    merged = wrapped(module, AdaptiveMerge(0.9999), proportional=True, residual=False)
    result = merged(tokens, src_key_padding_mask=hidden)
    assert_close(result, module(tokens, src_key_padding_mask=hidden))


class WithText(nn.Module):
    """Self-attention, then attention to text (batch, length, channels)."""

    def __init__(self) -> None:
        super().__init__()
        with seeded():
            self.layer = nn.TransformerDecoderLayer(WIDTH, 2, 32, batch_first=True).eval()

    def forward(self, tokens: Tensor, text: Tensor) -> Tensor:
        return self.layer(tokens, text)


@pytest.mark.parametrize("compiled", tiered([False, True], [False]))
@pytest.mark.parametrize("options", [{}, {"capacity": 0.5}, {"capacity": 0.5, "spare": "fill"}])
def test_text_as_long_as_the_slots_is_attended_to_in_full(options, compiled):
    """Text that is given twice over gives the same average; what is as long as padded slots is not one of them."""
    block = wrapped(WithText(), AdaptiveMerge(0.5, **options), proportional=True)
    forward = torch.compile(block, fullgraph=True, backend="eager") if compiled else block
    forward(alike(0, 0.5), noise(2, 7, WIDTH))
    slots = block.cache.plan().size.shape[1]
    for length in (slots, slots + 8):
        text = noise(2, length, WIDTH, seed=length)
        assert_close(forward(alike(0, 0.5), text), forward(alike(0, 0.5), text.repeat(1, 2, 1)))


@pytest.mark.parametrize("options", [{"spare": "pad"}, {"spare": "fill", "proportional": True}])
def test_wrapped_attention_that_is_not_intercepted_says_what_helps(options):
    proportional = options.pop("proportional", False)
    block = wrapped(OwnSoftmax(), AdaptiveMerge(0.5, capacity=0.5, **options), proportional=proportional)
    with pytest.raises(
        ValueError, match=r"OwnSoftmax did not call scaled_dot_product_attention.*48 keys.*mask_argument"
    ) as error:
        block(alike(0, 4.0))
    (remedy,) = re.findall(r"AdaptiveMerge\(.*?\)", str(error.value))
    helped = wrapped(OwnSoftmax(), eval(remedy))
    assert helped(alike(0, 4.0)).shape == (2, 64, WIDTH)
    assert helped.cache.plan().size.shape[1] < 64


def test_attention_that_needs_no_change_is_not_required():
    policy = AdaptiveMerge(0.5, capacity=0.5, spare="fill")
    assert wrapped(OwnSoftmax(), policy)(noise(2, 64, WIDTH)).shape == (2, 64, WIDTH)


def test_attention_with_a_mask_argument_gets_the_bias():
    tokens, module = flat_tokens(), OwnSoftmax()
    merged = wrapped(module, AdaptiveMerge(0.9999), mask_argument="bias", proportional=True, residual=False)
    assert_close(merged(tokens), module(tokens))


# ---------------------------------------------------------------- without ceremony


def alike(seed: int, strength: float) -> Tensor:
    return noise(2, 64, WIDTH, seed=seed) + strength * noise(2, 1, WIDTH, seed=9)


def test_block_without_a_capacity_computes_as_few_slots_as_the_threshold_leaves():
    """At a checkpoint and after it, however alike the tokens are; its result is that of all slots."""
    cache, grid = PairCache(AdaptiveMerge(0.5)), TokenGrid((8, 8))
    block, lengths = MergedBlock(encoder_layer(), cache, grid, proportional=True), []
    whole = MergedBlock(block.block, PairCache(AdaptiveMerge(0.5, capacity=1.0)), grid, proportional=True)
    for step, strength in enumerate([4.0, 4.0, 0.0, 0.0, 0.5]):
        cache.refresh = whole.cache.refresh = step in (0, 2, 4)
        tokens = alike(step, strength)
        assert_close(block(tokens), whole(tokens))
        demand = max(oracle.unmergeable(row, 0.5) for row in cache.match().score.tolist())
        rungs = [oracle.rung(grid, rung) for rung in LADDER]
        lengths.append(cache.plan().size.shape[1])
        assert lengths[-1] == 16 + min((rung for rung in rungs if rung >= demand), default=48)
        assert cache.capacity is None and cache.overflow().sum() == 0
    assert lengths[0] == lengths[1] == 16 < lengths[4] < lengths[2] == lengths[3]


def test_capacity_of_the_caller_is_kept():
    cache = PairCache(AdaptiveMerge(0.5))
    block = MergedBlock(encoder_layer(), cache, TokenGrid((8, 8)), proportional=True)
    block(alike(0, 4.0))
    cache.set_capacity(0.5)
    for refresh in (False, True):
        cache.refresh = refresh
        block(alike(1, 4.0))
        assert cache.plan().size.shape[1] == 48 and cache.capacity == 0.5
    cache.set_capacity(None)
    assert cache.plan().size.shape[1] == 64


def test_filled_plan_without_a_capacity_merges_nothing():
    block = MergedBlock(OwnSoftmax(), PairCache(AdaptiveMerge(0.5, spare="fill")), TokenGrid((8, 8)))
    block(alike(0, 4.0))
    assert block.cache.plan().size.eq(1).all()


def test_block_reads_from_the_device_once_when_it_recomputes(monkeypatch):
    reads = []
    for name in ("tolist", "item", "__int__", "__float__", "__bool__", "cpu", "numpy"):
        read = getattr(Tensor, name)
        monkeypatch.setattr(
            Tensor, name, lambda self, *args, read=read, name=name: (reads.append(name), read(self, *args))[1]
        )
    for capacity, expected in ((None, ["__int__"]), (0.5, [])):
        block = MergedBlock(
            nn.Identity(), PairCache(AdaptiveMerge(0.5, capacity)), TokenGrid((8, 8)), mask_argument="_"
        )
        block.block.forward = lambda tokens, _: tokens
        for refresh, read in ((True, expected), (False, [])):
            block.cache.refresh = refresh
            reads.clear()
            block(alike(0, 1.0))
            assert reads == read


@pytest.mark.thorough
def test_compiled_block_keeps_every_slot_until_its_capacity_is_chosen():
    merged, counter = wrapped(encoder_layer(), AdaptiveMerge(0.5), proportional=True), CompileCounter()
    compiled = torch.compile(merged, fullgraph=True, backend=counter)
    for step in range(4):
        merged.cache.refresh = step % 2 == 0
        compiled(alike(step, 4.0))
        assert merged.cache.plan().size.shape[1] == 64
    assert counter.frame_count == 2
