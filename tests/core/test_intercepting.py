"""Intercepted attention against masks, keys and values made in loops; and what interception leaves alone."""

import threading
from itertools import product
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn.functional import multi_head_attention_forward, scaled_dot_product_attention
from torch.overrides import _get_current_function_mode_stack

import oracle
from catome_core import InterceptAttention, MergePlan, RecordKeys, extend, gather_anchors, merge
from strategies import Case, cases, either, policies, seeds
from tiers import tiered
from zoo.noise import noise, seeded

HEADS, CHANNELS = 2, 4
MASKS = ("none", "bool", "float")
some_policies = policies()


class Intercepted(NamedTuple):
    """An attention over slots, as the code around a merge calls it, with a mask made for tokens."""

    plan: MergePlan
    front: int
    back: int
    mode: InterceptAttention
    batch: int
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None


class Whole(NamedTuple):
    """One sample's plan of the whole sequence, in numbers: tokens outside the plan are slots of their own."""

    slot: list[int]
    size: list[int]
    anchor: list[int]


def whole(call: Intercepted, sample: int) -> Whole:
    rows = (part[sample % len(part)].tolist() for part in call.plan[:3])
    return Whole(*oracle.extend(*rows, call.front, call.back))


@st.composite
def intercepted_calls(draw, masks=MASKS) -> Intercepted:
    case: Case = draw(cases(some_policies, dtypes=(torch.float64,)))
    front, back, keys = draw(st.integers(0, 2)), draw(st.integers(0, 2)), draw(either)
    longer, padded = extend(case.plan, front, back), case.policy.spare == "pad"
    options = {"proportional": draw(either), "values": draw(st.sampled_from(["mean", "anchor"]))}
    mode = InterceptAttention(longer, padded=padded, merge_keys=keys, **options)
    tokens, slots = longer.slot.shape[1], longer.size.shape[1]
    generator = torch.Generator().manual_seed(draw(seeds))

    def make(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    batch, length = len(case.tokens), tokens if keys else slots
    query, key, value = (make(batch, HEADS, length, CHANNELS) for _ in range(3))
    kind, leading = draw(st.sampled_from(masks)), draw(st.sampled_from([(), (HEADS,), (batch, 1), (batch, HEADS)]))
    mask = make(*leading, draw(st.sampled_from([1, tokens])), tokens)
    mask = {"none": None, "bool": mask > 0, "float": mask}[kind]
    return Intercepted(case.plan, front, back, mode, batch, query, key, value, mask)


def expected_scores(call: Intercepted, sample: int, head: int) -> Tensor:
    """What is added to the scores (queries, slots), one by one."""
    mode, plan = call.mode, whole(call, sample)
    bias = [0.0] * len(plan.size)
    if mode.mask.needs_bias:
        bias = oracle.attention_bias(plan.size, proportional=mode.mask.proportional)
    rows = range(len(plan.slot)) if mode.merge_keys else plan.anchor
    columns = list(zip(bias, plan.anchor, strict=True))
    scores = [[extra + looked_up(call, sample, head, row, column) for extra, column in columns] for row in rows]
    return torch.tensor(scores, dtype=torch.float64)


def looked_up(call: Intercepted, sample: int, head: int, row: int, column: int) -> float:
    if call.mask is None:
        return 0.0
    tokens = len(whole(call, sample).slot)
    entry = call.mask.expand(call.batch, HEADS, tokens, tokens)[sample, head, row, column].item()
    return entry if call.mask.is_floating_point() else 0.0 if entry else -torch.inf


def expected(call: Intercepted) -> Tensor:
    """Attention in float64; a query that may look nowhere gets zeros."""
    result = torch.empty_like(call.query)
    for sample, head in product(range(call.batch), range(HEADS)):
        key, value = expected_keys(call, sample, head)
        scores = call.query[sample, head] @ key.mT / CHANNELS**0.5 + expected_scores(call, sample, head)
        result[sample, head] = scores.softmax(-1).nan_to_num(0.0) @ value
    return result


def expected_keys(call: Intercepted, sample: int, head: int) -> tuple[Tensor, Tensor]:
    key, value = call.key[sample, head], call.value[sample, head]
    if not call.mode.merge_keys:
        return key, value
    plan = whole(call, sample)
    keys = oracle.gather_anchors(key.tolist(), plan.anchor)
    if call.mode.values == "anchor":
        return key.new_tensor(keys), value.new_tensor(oracle.gather_anchors(value.tolist(), plan.anchor))
    return key.new_tensor(keys), value.new_tensor(oracle.merge(value.tolist(), plan.slot, plan.size))


def run_intercepted(call: Intercepted, heads_in_batch: bool = False) -> Tensor:
    inputs, mask = [call.query, call.key, call.value], call.mask
    if heads_in_batch:
        inputs = [one.flatten(0, 1) for one in inputs]
        if mask is not None and mask.ndim > 2:
            mask = mask.expand(call.batch, HEADS, -1, -1).flatten(0, 1)
    with call.mode:
        result = scaled_dot_product_attention(*inputs, attn_mask=mask)
    assert call.mode.was_called
    return result.unflatten(0, (call.batch, HEADS)) if heads_in_batch else result


# What attention is changed to.


@given(intercepted_calls(), either)
def test_attention_over_slots_agrees_with_loops(call, heads_in_batch):
    torch.testing.assert_close(run_intercepted(call, heads_in_batch), expected(call))


@given(intercepted_calls())
def test_fewer_key_heads_than_query_heads(call):
    query = call.query.repeat_interleave(2, 1)
    mask = call.mask
    if mask is not None and mask.ndim > 2 and mask.shape[-3] == HEADS:
        mask = mask.repeat_interleave(2, -3)
    with call.mode:
        result = scaled_dot_product_attention(query, call.key, call.value, mask, enable_gqa=True)
    torch.testing.assert_close(result, expected(call).repeat_interleave(2, 1))


@given(intercepted_calls())
def test_multihead_attention_agrees_with_attention_over_slots_made_by_hand(call):
    with seeded():
        module = nn.MultiheadAttention(HEADS * CHANNELS, HEADS, batch_first=True, dtype=torch.float64)
    query, key, value = (one.transpose(1, 2).flatten(2) for one in (call.query, call.key, call.value))
    mask = None
    if call.mask is not None:
        tokens = call.mask.shape[-1]
        mask = call.mask.expand(call.batch, HEADS, tokens, tokens).flatten(0, 1)
    with call.mode:
        result, _ = module(query, key, value, attn_mask=flipped(mask), need_weights=False)
    assert call.mode.was_called
    keys = [expected_keys(call, sample, head) for sample in range(call.batch) for head in range(HEADS)]
    key, value = (
        torch.stack(part).unflatten(0, (-1, HEADS)).transpose(1, 2).flatten(2) for part in zip(*keys, strict=True)
    )
    scores = [expected_scores(call, sample, head) for sample in range(call.batch) for head in range(HEADS)]
    by_hand, _ = module(query, key, value, attn_mask=torch.stack(scores), need_weights=False)
    torch.testing.assert_close(result, by_hand)


def flipped(mask: Tensor | None) -> Tensor | None:
    """The masks of `nn.MultiheadAttention` are True where it may not look."""
    return ~mask if mask is not None and mask.dtype == torch.bool else mask


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
@pytest.mark.parametrize("keys", [False, True])
def test_padding_mask_of_multihead_attention_is_that_of_the_anchors(kind, keys):
    plan = MergePlan(torch.tensor([[0, 0, 1, 2]]), torch.tensor([[2, 1, 1, 0]]), torch.tensor([[0, 2, 3, 0]]))
    with seeded():
        module = nn.MultiheadAttention(4, 2, batch_first=True)
    tokens = noise(2, 4, 4)
    hidden = torch.tensor([[False, False, False, True], [False, False, True, False]])
    padding = hidden if kind == torch.bool else torch.zeros(2, 4).masked_fill(hidden, -torch.inf)
    inputs = tokens if keys else merge(tokens, plan)
    weights = module.in_proj_weight, module.in_proj_bias, None, None, False, 0.0, module.out_proj.weight
    with InterceptAttention(plan, merge_keys=keys):
        result, _ = multi_head_attention_forward(
            *[inputs.transpose(0, 1)] * 3, 4, 2, *weights, module.out_proj.bias, key_padding_mask=padding
        )
    result = result.transpose(0, 1)
    shown = ~torch.tensor([[False, False, True, True], [False, True, False, True]])
    key = gather_anchors(tokens, plan) if keys else inputs
    means = merge(tokens, plan)
    torch.testing.assert_close(result, module(inputs, key, means, key_padding_mask=~shown)[0])


def test_mask_of_tokens_is_put_in_the_order_of_slots_although_there_are_as_many():
    """Before the first `fit` there is a kept slot for every source."""
    plan = MergePlan(torch.tensor([[0, 2, 1]]), torch.tensor([[1, 1, 1]]), torch.tensor([[0, 2, 1]]))
    tokens, mask = noise(1, 1, 3, 4), noise(3, 3)
    merged = tokens[:, :, plan.anchor[0]]
    with InterceptAttention(plan):
        result = scaled_dot_product_attention(merged, merged, merged, mask)
    unmerged = scaled_dot_product_attention(tokens, tokens, tokens, mask)
    torch.testing.assert_close(result, unmerged[:, :, plan.anchor[0]])


# What it leaves alone.

PLAN = MergePlan(torch.tensor([[0, 0, 1, 2]]), torch.tensor([[2, 1, 1, 0]]), torch.tensor([[0, 2, 3, 0]]))
SHORT = MergePlan(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[2, 2]]), torch.tensor([[0, 2]]))


def attend(length: int, batch: int = 1, seed: int = 0) -> Tensor:
    query, key, value = noise(3, batch, 2, length, 4, seed=seed)
    return scaled_dot_product_attention(query, key, value)


def attend_module(length: int) -> Tensor:
    with seeded():
        module = nn.MultiheadAttention(4, 2, batch_first=True)
    tokens = noise(2, length, 4)
    return module(tokens, tokens, tokens)[0]


@pytest.mark.parametrize("call", [attend, attend_module])
def test_attention_over_another_number_of_keys_passes(call):
    with InterceptAttention(PLAN) as mode:
        results = [call(length) for length in (3, 5)]
    assert not mode.was_called
    assert all(torch.equal(one, call(length)) for one, length in zip(results, (3, 5), strict=True))


def test_attention_over_another_batch_passes():
    with InterceptAttention(MergePlan(*(part.expand(2, -1) for part in PLAN[:3]))) as mode:
        attend(4, batch=3)
    assert not mode.was_called


@pytest.mark.parametrize("all_calls", [False, True])
def test_first_fitting_attention_is_changed_or_every_one(all_calls):
    plain = attend(4)
    with InterceptAttention(PLAN, all_calls=all_calls):
        first, second = attend(4), attend(4)
    assert not torch.equal(first, plain)
    assert torch.equal(second, first if all_calls else plain)


def test_nothing_stays_open_after_an_error():
    with pytest.raises(ValueError, match="attention is causal"), InterceptAttention(PLAN):
        scaled_dot_product_attention(*noise(3, 1, 2, 4, 4), is_causal=True)
    assert _get_current_function_mode_stack() == []


def test_causal_multihead_attention_is_refused():
    module, tokens = nn.MultiheadAttention(4, 2, batch_first=True), noise(2, 4, 4)
    causal = nn.Transformer.generate_square_subsequent_mask(4)
    with pytest.raises(ValueError, match="attention is causal"), InterceptAttention(PLAN):
        module(tokens, tokens, tokens, attn_mask=causal, is_causal=True)


@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (1, 2, 5, 4)])
def test_mask_of_neither_tokens_nor_slots_is_refused(shape):
    with pytest.raises(ValueError, match=r"attn_mask of shape \(.*the 4 tokens or 2 slots"), InterceptAttention(SHORT):
        scaled_dot_product_attention(*noise(3, 1, 2, 2, 4), attn_mask=noise(*shape))


def test_unknown_values_are_refused():
    with pytest.raises(ValueError, match="values is 'median'; expected 'mean' or 'anchor'"):
        InterceptAttention(PLAN, merge_keys=True, values="median")


def test_other_threads_are_not_intercepted():
    results = []
    with InterceptAttention(PLAN, all_calls=True):
        thread = threading.Thread(target=lambda: results.append(attend(4)))
        thread.start()
        thread.join()
    assert torch.equal(results[0], attend(4))


# Under the compiler and autograd.


def merged_attention(tokens: Tensor, module: nn.Module | None, keys: bool) -> Tensor:
    plan = extend(PLAN, front=1)
    inputs = tokens if keys else merge(tokens, plan)
    with InterceptAttention(plan, proportional=True, merge_keys=keys):
        if module is not None:
            return module(inputs, inputs, inputs, need_weights=False)[0]
        return scaled_dot_product_attention(inputs[:, None], inputs[:, None], inputs[:, None])


@pytest.mark.parametrize(
    ("keys", "gradients", "multihead"),
    tiered(product([False, True], repeat=3), [(True, False, False), (False, True, True)]),
)
def test_one_graph_without_a_break(keys, gradients, multihead):
    torch.compiler.reset()
    with seeded():
        module = nn.MultiheadAttention(4, 2, batch_first=True).eval() if multihead else None
    counter = CompileCounter()
    compiled = torch.compile(merged_attention, fullgraph=True, backend=counter)
    with torch.set_grad_enabled(gradients):
        for seed in range(2):
            tokens = noise(2, 5, 4, seed=seed)
            torch.testing.assert_close(compiled(tokens, module, keys), merged_attention(tokens, module, keys))
    assert counter.frame_count == 1


@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize("multihead", [False, True])
def test_gradients(keys, multihead):
    with seeded():
        module = nn.MultiheadAttention(4, 2, batch_first=True, dtype=torch.float64) if multihead else None
    tokens = noise(2, 5, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda inputs: merged_attention(inputs, module, keys), tokens)


# Recording.


def test_recorded_keys_are_those_of_the_last_attention():
    keys = noise(2, 1, 2, 3, 4)
    with RecordKeys() as record:
        assert record.keys is None
        scaled_dot_product_attention(keys[0], keys[0], keys[0])
        result = scaled_dot_product_attention(keys[0], value=keys[0], key=keys[1])
    assert record.keys is not None and torch.equal(record.keys, keys[1])
    assert torch.equal(result, scaled_dot_product_attention(keys[0], keys[1], keys[0]))
