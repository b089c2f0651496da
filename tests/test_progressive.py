"""Merging from block to block without unmerging, against the model's own blocks run one by one."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from catome_adapters import RECIPES, MergeRecipe, attach, find_sites
from catome_bench.vits import counts_of, publish
from catome_core import AdaptiveMerge, TokenGrid, match_tokens, merge, plan_merge, unmerge
from catome_core.composing import compose, in_order, merge_weighted
from models import anatomy, noise, sd_unet
from vits import SIZES, VITS, Vit, images, run_block

TOME = RECIPES["tome"]


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(params=VITS)
def vit(request) -> Vit:
    return VITS[request.param]


@pytest.fixture
def network(vit) -> nn.Module:
    return vit.network()


def at(capacity: float, **options: Any) -> MergeRecipe:
    return replace(TOME, policy=AdaptiveMerge(threshold=-1, capacity=capacity, spare="fill"), **options)


# Against the model's own blocks.


@pytest.mark.parametrize("proportional", [True, False])
def test_blocks_run_on_what_the_blocks_before_have_left(vit, network, proportional):
    unmerged = enter_blocks(network)
    with attach(network, at(0.3, proportional=proportional)):
        features = network.forward_features(images())
    expected = torch.stack([run_progressively(network, tokens, 0.3, proportional) for tokens in unmerged])
    torch.testing.assert_close(features, network.norm(expected), rtol=1e-4, atol=1e-5)


def enter_blocks(network: nn.Module) -> Tensor:
    seen: list[Tensor] = []
    handle = network.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    network(images())
    handle.remove()
    return seen[0]


def run_progressively(network: nn.Module, tokens: Tensor, capacity: float, proportional: bool) -> Tensor:
    """One sample, (tokens, channels), with the members of every slot as a list."""
    prefix, slots = network.num_prefix_tokens, tokens
    members = [[token] for token in range(len(tokens))]
    anchors = list(range(len(tokens)))
    for index in range(len(network.blocks)):
        bias = torch.tensor([len(group) for group in members]).log() * proportional
        slots, keys = attend(network, index, slots, anchors, bias)
        homes, kept = pair_up(keys, prefix, capacity)
        order = sorted([*range(prefix), *range(prefix, len(slots), 2), *kept])
        groups = [[one, *(source for source, home in homes.items() if home == one)] for one in order]
        slots = torch.stack([weigh(slots[group], [len(members[one]) for one in group]) for group in groups])
        members = [[token for one in group for token in members[one]] for group in groups]
        anchors = [anchors[one] for one in order]
        slots = feed_forward(network.blocks[index], slots)
    result = torch.empty_like(tokens)
    for slot, group in zip(slots, members, strict=True):
        result[group] = slot
    return result


class Nothing(nn.Module):
    """Adds nothing to the tokens that skip it."""

    def forward(self, tokens: Tensor, *_: object, **__: object) -> Tensor:
        return torch.zeros_like(tokens)


class KeysSeen(TorchFunctionMode):
    """Keeps the keys (batch, heads, tokens, channels) of the one fused attention that runs."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is scaled_dot_product_attention:
            self.keys = args[1] if len(args) > 1 else kwargs["key"]
        return func(*args, **(kwargs or {}))


def attend(network: nn.Module, index: int, slots: Tensor, anchors: list[int], bias: Tensor) -> tuple[Tensor, Tensor]:
    """What the first half of a block makes of the slots, and the mean over heads of their keys."""
    with KeysSeen() as seen:
        slots = run_block(network, index, slots[None], torch.tensor(anchors), bias, mlp=Nothing())[0]
    return slots, seen.keys[0].mean(0)


def feed_forward(block: nn.Module, slots: Tensor) -> Tensor:
    """The second half of a block."""
    block = deepcopy(block)
    block.attn = Nothing()
    return block(slots[None])[0]


def pair_up(keys: Tensor, prefix: int, capacity: float) -> tuple[dict[int, int], list[int]]:
    """Where the most similar sources merge, and which are kept, in the order of the sequence."""
    grid = TokenGrid((1, len(keys) - prefix), (1, 2))
    sources, targets = range(prefix + 1, len(keys), 2), range(prefix, len(keys), 2)
    cosines = torch.cosine_similarity(keys[sources, None], keys[None, targets], dim=-1)
    best, order = cosines.max(1), cosines.amax(1).argsort(descending=True).tolist()
    gone = order[: grid.sources - grid.places(capacity)]
    kept = [sources[one] for one in sorted(set(order) - set(gone))]
    return {sources[one]: targets[int(best.indices[one])] for one in gone}, kept


def weigh(rows: Tensor, sizes: list[int]) -> Tensor:
    return sum(row * size for row, size in zip(rows, sizes, strict=True)) / sum(sizes)


@pytest.mark.parametrize("proportional", [True, False])
def test_class_token_after_two_blocks_is_that_of_the_published_method(proportional):
    """Further on, it is another half of the tokens that may merge: there, slots lose their order."""
    network = VITS["ViT"].network(depth=2, class_token=True, global_pool="token")
    with attach(network, at(0.3, proportional=proportional)) as session:
        logits = network(images())
        counts = counts_of(session)
    torch.testing.assert_close(logits, publish(network, counts, proportional)(images()), rtol=1e-4, atol=1e-5)


def test_equal_tokens_merge_without_a_trace():
    """Groups of four equal tokens: two halvings lose nothing, if attention is told the sizes."""
    network = VITS["ViT"].network()
    network.pos_embed.zero_()
    patches = noise(1, 3, 4, 4, 4, 4, seed=1)  # 16 different patches of 4 x 4 pixels
    image = patches.repeat_interleave(4, 3).permute(0, 1, 2, 4, 3, 5).reshape(1, 3, 16, 64)
    network = with_grid(network, (16, 64))
    unpatched, sites = network.forward_features(image), find_sites(network)[:2]
    with attach(network, at(0.0), sites=sites) as session:
        torch.testing.assert_close(network.forward_features(image), unpatched, rtol=1e-4, atol=1e-5)
        assert [row.slots for row in session.summary().rows] == [33, 17]
    with attach(network, at(0.0, proportional=False), sites=sites):
        assert not torch.allclose(network.forward_features(image), unpatched, rtol=1e-2, atol=1e-2)


def with_grid(network: nn.Module, size: tuple[int, int]) -> nn.Module:
    network.set_input_size(size)
    return network


def test_prefix_tokens_are_never_merged(vit, network):
    with attach(network, at(0.0)) as session:
        vit.call(network)
        plans = session.plans().values()
    for plan in plans:
        assert torch.equal(plan.slot[:, : vit.prefix], torch.arange(vit.prefix).expand(2, -1))
        assert (plan.size[:, : vit.prefix] == 1).all()


# How much merges.


@pytest.mark.parametrize("capacity", [0.0, 0.2, 0.44])
def test_every_block_leaves_a_share_of_its_own_tokens(vit, network, capacity):
    with attach(network, at(capacity)) as session:
        vit.call(network)
        rows = session.summary().rows
    patches = 64
    for row in rows:
        assert row.tokens == vit.prefix + patches
        patches = -(-patches // 2) + min(patches // 2, TokenGrid((1, patches)).places(capacity))
        assert row.slots == vit.prefix + patches
    assert [row.site for row in rows] == ["blocks.0", "blocks.1", "blocks.2"]


@pytest.mark.parametrize("capacity", [0.5, 1.0])
def test_capacity_of_half_is_the_unpatched_model_bit_by_bit(vit, network, capacity):
    unpatched = vit.call(network)
    with attach(network, at(capacity)) as session:
        assert torch.equal(vit.call(network), unpatched)
        assert session.summary().merged_fraction == 0


def test_a_block_with_two_tokens_or_one_still_runs():
    network = VITS["ViT"].network(img_size=(4, 8), depth=4)
    with attach(network, at(0.0)) as session:
        assert network(images(size=(4, 8))).isfinite().all()
        assert [row.slots for row in session.summary().rows] == [2, 2, 2, 2]


# Life.


def test_features_and_logits_keep_their_shape_and_change(vit, network):
    unpatched = vit.call(network), network(images())
    with attach(network, TOME):
        merged = vit.call(network), network(images())
    for some, others in zip(merged, unpatched, strict=True):
        assert some.shape == others.shape and some.isfinite().all()
        assert not torch.allclose(some, others, rtol=1e-3, atol=1e-4)


def test_features_between_the_blocks_are_refused_until_detach(network):
    with attach(network, TOME), pytest.raises(ValueError, match=r'merged \(blocks.0 to 2\): use RECIPES\["vit"\]'):
        network.forward_intermediates(images())
    assert len(network.forward_intermediates(images(), intermediates_only=True)) == 3


def test_detach_restores_exactly(vit, network):
    before, unpatched = anatomy(network), vit.call(network)
    with attach(network, TOME):
        vit.call(network)
        assert list(network.state_dict()) == before["state_dict"]
        with pytest.raises(RuntimeError, match=r"call its detach\(\) first"):
            attach(network, TOME)
    assert anatomy(network) == before
    assert torch.equal(vit.call(network), unpatched)


def test_failed_call_leaves_nothing_behind(vit, network):
    with attach(network, TOME):
        expected = vit.call(network)
        handle = network.blocks[1].attn.register_forward_pre_hook(fail)
        with pytest.raises(ZeroDivisionError):
            vit.call(network, seed=1)
        handle.remove()
        assert torch.equal(vit.call(network), expected)


def fail(*_: object) -> None:
    raise ZeroDivisionError


def test_other_batches_and_sizes_follow_one_another():
    vit, network = VITS["DINOv3"], VITS["DINOv3"].network(dynamic_img_size=True)
    with attach(network, TOME) as session:
        together = vit.call(network, batch=3)
        assert vit.call(network, size=SIZES[1]).shape == (2, 5 + 60, 24)
        assert "1 x 60" in session.report() and "progressive True" in session.report()
        torch.testing.assert_close(vit.call(network, batch=1), together[:1], rtol=1e-4, atol=1e-5)


def test_a_gap_between_sites_is_unmerged():
    network = VITS["DINOv3"].network(depth=4)
    sites = [site for site in find_sites(network) if site.name != "blocks.2"]
    seen: list[int] = []
    for block in network.blocks:
        block.mlp.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    with attach(network, at(0.0), sites=sites):
        network(images())
    assert seen == [5 + 32, 5 + 16, 5 + 64, 5 + 32]


def test_gradients_flow_through_every_merge():
    network = VITS["BEiT"].network()
    with attach(network, TOME), torch.enable_grad():
        network(images()).square().sum().backward()
    assert all(block.mlp.fc1.weight.grad.abs().sum() > 0 for block in network.blocks)
    assert network.patch_embed.proj.weight.grad.isfinite().all()


def test_gradient_checkpointing_is_refused():
    network = VITS["ViT"].network()
    network.set_grad_checkpointing()
    with attach(network, TOME), torch.enable_grad(), pytest.raises(ValueError, match="gradient checkpointing"):
        network(images())


@pytest.mark.parametrize("name", ["ViT", "DINOv3", "RoPE mixed", "BEiT"])
def test_whole_model_compiles_to_one_graph_and_one_for_the_first_call(name):
    network = VITS[name].network()
    with attach(network, TOME):
        expected = [network(images(seed=seed)) for seed in range(3)]
    counter = CompileCounter()
    with attach(network, TOME):
        compiled = torch.compile(network, backend=counter, fullgraph=True)
        for seed in range(3):
            torch.testing.assert_close(compiled(images(seed=seed)), expected[seed], rtol=1e-4, atol=1e-5)
    assert counter.frame_count <= 2


# What is refused.


@pytest.mark.parametrize(
    "changes",
    [
        {"scope": "attention"},
        {"segment": 2},
        {"policy": AdaptiveMerge(threshold=-1, spare="fill")},
        {"policy": AdaptiveMerge(threshold=-1, capacity=0.4)},
        {"policy": AdaptiveMerge(threshold=-1, capacity=0.4, spare="fill", radius=1)},
    ],
)
def test_recipe_that_does_not_fit_is_refused(changes):
    with pytest.raises(ValueError, match=r'progressive=True with .*RECIPES\["tome"\]'):
        replace(TOME, **changes)


def test_model_that_draws_every_token_is_refused():
    with pytest.raises(ValueError, match=r"progressive=True merges for good, and down_blocks"):
        attach(sd_unet(), TOME)


def test_block_without_a_known_feed_forward_is_refused():
    network = VITS["ViT"].network()
    before = anatomy(network)
    sites = [replace(site, layout=replace(site.layout, feed_forward=())) for site in find_sites(network)]
    with pytest.raises(ValueError, match=r"blocks\.0 does not say where Block has its feed-forward"):
        attach(network, TOME, sites=sites)
    assert anatomy(network) == before


def test_attention_that_is_not_fused_is_refused_and_leaves_nothing_behind():
    network = VITS["ViT"].network()
    with attach(network, at(0.5)):
        expected = network(images())
        network.blocks[0].attn.fused_attn = False
        with pytest.raises(ValueError, match=r"blocks\.0: Attention did not call scaled_dot_product_attention"):
            network(images())
        network.blocks[0].attn.fused_attn = True
        assert torch.equal(network(images()), expected)
    assert torch.overrides._get_current_function_mode_stack() == []


def test_recipe_travels_as_json():
    assert MergeRecipe.from_json(TOME.to_json()) == TOME


# Laws.


@st.composite
def two_plans(draw: st.DrawFn):
    tokens = noise(2, draw(st.integers(4, 20)), 3, seed=draw(st.integers(0, 999)))
    plans, left = [], tokens
    for _ in range(2):
        grid = TokenGrid((1, left.shape[1]), (1, 2))
        capacity = draw(st.floats(0, 0.5))
        plan = plan_merge(match_tokens(left, grid), grid, threshold=-1, capacity=capacity, spare="fill")
        plans.append(plan)
        left = merge(left, plan)
    return tokens, *plans


@given(two_plans())
def test_composed_merge_is_the_weighted_merge_of_the_first(drawn):
    tokens, first, then = drawn
    composed = compose(first, then)
    stepwise = merge_weighted(merge(tokens, first), first.size, then)
    torch.testing.assert_close(merge(tokens, composed), stepwise, rtol=1e-5, atol=1e-6)
    assert torch.equal(composed.slot.gather(1, composed.anchor), torch.arange(composed.size.shape[1]).expand(2, -1))
    assert (composed.size.sum(1) == tokens.shape[1]).all()


@given(two_plans())
def test_slots_in_order_are_the_same_slots(drawn):
    tokens, plan, _ = drawn
    ordered = in_order(plan)
    assert torch.equal(unmerge(merge(tokens, ordered), ordered), unmerge(merge(tokens, plan), plan))
    assert torch.equal(ordered.anchor, plan.anchor.sort(1)[0])
    assert torch.equal(ordered.anchor.gather(1, ordered.slot), plan.anchor.gather(1, plan.slot))
    assert torch.equal(ordered.size.gather(1, ordered.slot), plan.size.gather(1, plan.slot))


@given(two_plans(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_kept_slots_come_out_bit_exact_whatever_their_size(drawn, dtype):
    tokens, first, then = drawn
    slots, size = merge(tokens, first).to(dtype), 7 * first.size + 3
    merged = merge_weighted(slots, size, then)
    alone = then.size == 1
    assert torch.equal(merged[alone], slots.gather(1, then.anchor[..., None].expand(-1, -1, 3))[alone])
    assert merged.dtype == dtype
