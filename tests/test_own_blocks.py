"""Blocks that no adapter knows: a `MergeSite` or a `MergedBlock` around them is all that merging takes."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.overrides import _get_current_function_mode_stack

from catome_adapters import BlockLayout, Follow, MergeRecipe, MergeSite, attach, compile_blocks
from catome_core import AdaptiveMerge, CheckpointSchedule, MergedBlock, PairCache, TokenGrid
from foreign import MAKERS, WIDTH, Foreign, Trunk, build, heads_of, rotary
from models import anatomy, noise, seeded

SCOPES = ("attention", "keys", "block")
SCHEDULE = CheckpointSchedule((0, 3), of=6)


@pytest.fixture(autouse=True)
def without_gradients():
    torch.compiler.reset()
    with torch.no_grad():
        yield


def make_recipe(
    scope: str = "attention", threshold: float = 0.5, capacity: float | None = 0.25, **options
) -> MergeRecipe:
    return MergeRecipe(AdaptiveMerge(threshold, capacity, **options), SCHEDULE, scope, proportional=True, levels="all")


def steps(session, foreign: Foreign, seeds=range(6)) -> list[Tensor]:
    outputs = []
    for step, seed in enumerate(seeds):
        session.begin_step(step, 6)
        outputs.append(foreign.call(seed))
    return outputs


# By a declaration.


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", MAKERS)
def test_equal_tokens_merge_without_loss(name, scope):
    """Positions, conditions, skip connections and sizes all follow, or this would show it."""
    foreign = build(name)
    unmerged = foreign.call(flat=True)
    with attach(foreign.model, make_recipe(scope, 0.9999, None), sites=foreign.sites) as session:
        session.begin_step(0, 6)
        torch.testing.assert_close(foreign.call(flat=True), unmerged, rtol=1e-4, atol=1e-5)
        session.begin_step(1, 6)
        assert session.summary().merged_fraction == pytest.approx(48 / (64 + foreign.sites[0].prefix))
        torch.testing.assert_close(foreign.call(flat=True), unmerged, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", MAKERS)
def test_merging_changes_the_result_and_detaching_restores_it(name, scope):
    foreign = build(name)
    before, unmerged = anatomy(foreign.model), foreign.call()
    with attach(foreign.model, make_recipe(scope), sites=foreign.sites) as session:
        recomputed, reused = steps(session, foreign, seeds=(0, 0))
        smaller = foreign.call(batch=1)
    assert recomputed.isfinite().all() and not torch.allclose(recomputed, unmerged, atol=1e-3)
    assert torch.equal(reused, recomputed) and len(smaller) == 1
    assert anatomy(foreign.model) == before and torch.equal(foreign.call(), unmerged)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", MAKERS)
def test_compiled_block_by_block(name, scope):
    foreign, counter = build(name), CompileCounter()
    with attach(foreign.model, make_recipe(scope), sites=foreign.sites) as session:
        eager = steps(session, foreign)
        compile_blocks(foreign.model, sites=foreign.sites, fullgraph=True, backend=counter)
        for one, other in zip(steps(session, foreign), eager, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert counter.frame_count > 0


# With a wrapper.


def wrapped(block: nn.Module, policy: AdaptiveMerge, **options) -> MergedBlock:
    cache, grid = PairCache(policy), TokenGrid((8, 8))
    cache.allocate(2, grid)
    return MergedBlock(block, cache, grid, **options).eval()


def encoder_layer() -> nn.Module:
    with seeded():
        return nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True).eval()


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
    """Every attention inside learns of sizes and padding, without an argument for it."""
    module, tokens = block().eval(), flat_tokens()
    merged = wrapped(module, AdaptiveMerge(0.9999), proportional=True, residual=False)
    torch.testing.assert_close(merged(tokens), module(tokens), rtol=1e-4, atol=1e-5)
    assert merged.cache.plan().size.eq(0).any()


@pytest.mark.parametrize("block", [encoder_layer, Pair])
def test_wrapped_block_compiles_to_two_graphs(block):
    merged, counter = wrapped(block(), AdaptiveMerge(0.5, capacity=0.5), proportional=True), CompileCounter()
    compiled = torch.compile(merged, fullgraph=True, backend=counter)
    for step in range(6):
        merged.cache.refresh = step % 3 == 0
        tokens = noise(2, 64, WIDTH, seed=step)
        torch.testing.assert_close(compiled(tokens), merged(tokens))
    assert counter.frame_count == 2


def test_mask_for_the_tokens_becomes_that_of_the_anchors():
    module, tokens = encoder_layer(), flat_tokens()
    hidden = (torch.arange(64) // 16 == 3).expand(2, -1)  # the last row of cells
    merged = wrapped(module, AdaptiveMerge(0.9999), proportional=True, residual=False)
    result = merged(tokens, src_key_padding_mask=hidden)
    torch.testing.assert_close(result, module(tokens, src_key_padding_mask=hidden), rtol=1e-4, atol=1e-5)


class OwnSoftmax(nn.Module):
    """Attention that calls nothing of torch's."""

    def forward(self, tokens: Tensor, bias: Tensor | float = 0.0) -> Tensor:
        query = heads_of(tokens)
        return ((query @ query.mT + bias).softmax(-1) @ query).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("options", [{"spare": "pad"}, {"spare": "fill", "proportional": True}])
def test_wrapped_attention_that_cannot_be_told_says_what_helps(options):
    proportional = options.pop("proportional", False)
    block = wrapped(OwnSoftmax(), AdaptiveMerge(0.5, capacity=0.5, **options), proportional=proportional)
    with pytest.raises(
        ValueError, match=r"OwnSoftmax did not call scaled_dot_product_attention.*48 keys.*mask_argument"
    ):
        block(noise(2, 64, WIDTH))


def test_what_needs_not_be_told_is_not_asked_for():
    policy = AdaptiveMerge(0.5, capacity=0.5, spare="fill")
    assert wrapped(OwnSoftmax(), policy)(noise(2, 64, WIDTH)).shape == (2, 64, WIDTH)


def test_attention_with_a_mask_argument_is_told_by_it():
    tokens, module = flat_tokens(), OwnSoftmax()
    merged = wrapped(module, AdaptiveMerge(0.9999), mask_argument="bias", proportional=True, residual=False)
    torch.testing.assert_close(merged(tokens), module(tokens), rtol=1e-4, atol=1e-5)


# What is declared wrongly.


def run_one(foreign: Foreign, sites: list[MergeSite], **options) -> None:
    with attach(foreign.model, make_recipe(**options), sites=sites) as session:
        session.begin_step(0, 6)
        foreign.call()


def changed(foreign: Foreign, **changes) -> list[MergeSite]:
    return [replace(site, **changes) for site in foreign.sites]


def measured(*shape: int) -> Callable[..., tuple[int, ...]]:
    return lambda arguments: shape


def test_rows_that_cannot_follow_are_named():
    foreign = build("rotary")
    foreign.model.stack[0].register_forward_pre_hook(lambda _, args: (args[0], args[1][:, :50]))
    with pytest.raises(ValueError, match=r"stack\.0: argument angles has shape \(1, 50, 4\); expected 64 rows"):
        run_one(foreign, foreign.sites)


def test_rows_without_a_batch_need_a_shared_plan():
    foreign = rotary(batched=False)
    layout = BlockLayout(output=0, follows=(Follow("angles"),))
    with pytest.raises(ValueError, match=r"stack\.0: argument angles has shape \(64, 4\).*no batch.*shared=True"):
        run_one(foreign, changed(foreign, layout=layout))


def test_wrong_grid_is_refused():
    foreign = build("TransformerEncoderLayer")
    with pytest.raises(ValueError, match=r"stack\.0 got 64 tokens.*a grid of 8 x 9.*measure"):
        run_one(foreign, changed(foreign, measure=measured(8, 9)))


def test_attention_outside_of_the_block_is_refused():
    foreign = build("TransformerEncoderLayer")
    first, second, _ = foreign.sites
    with pytest.raises(ValueError, match=r"stack\.0: its attention MultiheadAttention is not inside its block"):
        replace(first, attention=second.attention)


def test_host_that_was_not_called_is_named():
    foreign = build("TransformerEncoderLayer")
    with pytest.raises(ValueError, match=r"stack\.0 was called, and its host Linear was not.*host="):
        run_one(foreign, changed(foreign, host=nn.Linear(1, 1)))


class OwnAttention(Trunk):
    def __init__(self) -> None:
        super().__init__(lambda: nn.Sequential(OwnSoftmax()))


def test_attention_that_cannot_be_told_is_named():
    model = OwnAttention().eval()
    sites = [MergeSite(f"stack.{i}", block, block[0], model) for i, block in enumerate(model.stack)]
    with pytest.raises(ValueError, match=r"stack\.0: OwnSoftmax did not call scaled_dot_product_attention"):
        run_one(Foreign(model, sites), sites)


@pytest.mark.parametrize("scope", SCOPES)
def test_attention_after_an_error_inside_is_not_told(scope):
    foreign = build("DiT (x, c)")
    foreign.model.stack[1].attn.qkv.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_one(foreign, foreign.sites, scope=scope)
    assert _get_current_function_mode_stack() == []
