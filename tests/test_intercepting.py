"""Attention that is met on the way, against masks, keys and values made in loops; and what it leaves alone."""

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
from catome_core import MergePlan
from catome_core.intercepting import SlotAttention
from catome_core.spans import Span, take
from models import noise, seeded
from strategies import Case, cases, either, policies, seeds

HEADS, CHANNELS = 2, 4
MASKS = ("none", "bool", "float")
some_policies = policies()


class Meeting(NamedTuple):
    """An attention over slots, as the code around a merge calls it, with a mask made for tokens."""

    plan: MergePlan
    telling: SlotAttention
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


def whole(plan: MergePlan, sample: int, span: Span) -> Whole:
    slot, size, anchor = (part[sample % len(part)].tolist() for part in plan[:3])
    slots, tokens = range(span.front + len(size) + span.back), span.front + len(slot) + span.back
    front, back = slots[: span.front], slots[len(slots) - span.back :]
    return Whole(
        [*front, *(span.front + number for number in slot), *back],
        [1] * span.front + size + [1] * span.back,
        [*front, *(span.front + number for number in anchor), *range(tokens - span.back, tokens)],
    )


@st.composite
def meetings(draw, masks=MASKS) -> Meeting:
    case: Case = draw(cases(some_policies, dtypes=(torch.float64,)))
    span, keys = Span(draw(st.integers(0, 2)), draw(st.integers(0, 2))), draw(either)
    padded = case.policy.spare == "pad"
    telling = SlotAttention(case.plan, proportional=draw(either), padded=padded, keys=keys, span=span)
    tokens, slots = span.tokens(case.plan), span.slots(case.plan)
    generator = torch.Generator().manual_seed(draw(seeds))

    def make(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    batch, length = len(case.tokens), tokens if keys else slots
    query, key, value = (make(batch, HEADS, length, CHANNELS) for _ in range(3))
    kind, leading = draw(st.sampled_from(masks)), draw(st.sampled_from([(), (HEADS,), (batch, 1), (batch, HEADS)]))
    mask = make(*leading, draw(st.sampled_from([1, tokens])), tokens)
    mask = {"none": None, "bool": mask > 0, "float": mask}[kind]
    return Meeting(case.plan, telling, batch, query, key, value, mask)


def expected_scores(meeting: Meeting, sample: int, head: int) -> Tensor:
    """What is added to the scores (queries, slots), one by one."""
    telling, plan = meeting.telling, whole(meeting.plan, sample, meeting.telling.span)
    bias = [0.0] * len(plan.size)
    if telling.mask.biased:
        bias = oracle.attention_bias(plan.size, proportional=telling.mask.proportional)
    rows = range(len(plan.slot)) if telling.keys else plan.anchor
    columns = list(zip(bias, plan.anchor, strict=True))
    scores = [[extra + looked_up(meeting, sample, head, row, column) for extra, column in columns] for row in rows]
    return torch.tensor(scores, dtype=torch.float64)


def looked_up(meeting: Meeting, sample: int, head: int, row: int, column: int) -> float:
    if meeting.mask is None:
        return 0.0
    tokens = len(whole(meeting.plan, sample, meeting.telling.span).slot)
    entry = meeting.mask.expand(meeting.batch, HEADS, tokens, tokens)[sample, head, row, column].item()
    return entry if meeting.mask.is_floating_point() else 0.0 if entry else -torch.inf


def expected(meeting: Meeting) -> Tensor:
    """Attention in float64; a query that may look nowhere gets zeros."""
    result = torch.empty_like(meeting.query)
    for sample, head in product(range(meeting.batch), range(HEADS)):
        key, value = expected_keys(meeting, sample, head)
        scores = meeting.query[sample, head] @ key.mT / CHANNELS**0.5 + expected_scores(meeting, sample, head)
        result[sample, head] = scores.softmax(-1).nan_to_num(0.0) @ value
    return result


def expected_keys(meeting: Meeting, sample: int, head: int) -> tuple[Tensor, Tensor]:
    key, value = meeting.key[sample, head], meeting.value[sample, head]
    if not meeting.telling.keys:
        return key, value
    plan = whole(meeting.plan, sample, meeting.telling.span)
    keys = oracle.gather_anchors(key.tolist(), plan.anchor)
    return key.new_tensor(keys), value.new_tensor(oracle.merge(value.tolist(), plan.slot, plan.size))


def told(meeting: Meeting, heads_in_batch: bool = False) -> Tensor:
    inputs, mask = [meeting.query, meeting.key, meeting.value], meeting.mask
    if heads_in_batch:
        inputs = [one.flatten(0, 1) for one in inputs]
        if mask is not None and mask.ndim > 2:
            mask = mask.expand(meeting.batch, HEADS, -1, -1).flatten(0, 1)
    with meeting.telling:
        result = scaled_dot_product_attention(*inputs, attn_mask=mask)
    assert meeting.telling.seen
    return result.unflatten(0, (meeting.batch, HEADS)) if heads_in_batch else result


# What attention is told.


@given(meetings(), either)
def test_attention_over_slots_agrees_with_loops(meeting, heads_in_batch):
    torch.testing.assert_close(told(meeting, heads_in_batch), expected(meeting))


@given(meetings())
def test_fewer_key_heads_than_query_heads(meeting):
    query = meeting.query.repeat_interleave(2, 1)
    mask = meeting.mask
    if mask is not None and mask.ndim > 2 and mask.shape[-3] == HEADS:
        mask = mask.repeat_interleave(2, -3)
    with meeting.telling:
        result = scaled_dot_product_attention(query, meeting.key, meeting.value, mask, enable_gqa=True)
    torch.testing.assert_close(result, expected(meeting).repeat_interleave(2, 1))


@given(meetings())
def test_multihead_attention_agrees_with_attention_over_slots_made_by_hand(meeting):
    with seeded():
        module = nn.MultiheadAttention(HEADS * CHANNELS, HEADS, batch_first=True, dtype=torch.float64)
    query, key, value = (one.transpose(1, 2).flatten(2) for one in (meeting.query, meeting.key, meeting.value))
    mask = None
    if meeting.mask is not None:
        tokens = meeting.mask.shape[-1]
        mask = meeting.mask.expand(meeting.batch, HEADS, tokens, tokens).flatten(0, 1)
    with meeting.telling:
        result, _ = module(query, key, value, attn_mask=flipped(mask), need_weights=False)
    assert meeting.telling.seen
    keys = [expected_keys(meeting, sample, head) for sample in range(meeting.batch) for head in range(HEADS)]
    key, value = (
        torch.stack(part).unflatten(0, (-1, HEADS)).transpose(1, 2).flatten(2) for part in zip(*keys, strict=True)
    )
    scores = [expected_scores(meeting, sample, head) for sample in range(meeting.batch) for head in range(HEADS)]
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
    inputs = tokens if keys else Span().merge(tokens, plan)
    weights = module.in_proj_weight, module.in_proj_bias, None, None, False, 0.0, module.out_proj.weight
    with SlotAttention(plan, keys=keys):
        result, _ = multi_head_attention_forward(
            *[inputs.transpose(0, 1)] * 3, 4, 2, *weights, module.out_proj.bias, key_padding_mask=padding
        )
    result = result.transpose(0, 1)
    shown = ~torch.tensor([[False, False, True, True], [False, True, False, True]])
    key = take(tokens, plan.anchor, 1) if keys else inputs
    means = Span().merge(tokens, plan)
    torch.testing.assert_close(result, module(inputs, key, means, key_padding_mask=~shown)[0])


def test_mask_of_tokens_is_put_in_the_order_of_slots_although_there_are_as_many():
    """Before the first `fit` there is a place for every source."""
    plan = MergePlan(torch.tensor([[0, 2, 1]]), torch.tensor([[1, 1, 1]]), torch.tensor([[0, 2, 1]]))
    tokens, mask = noise(1, 1, 3, 4), noise(3, 3)
    merged = tokens[:, :, plan.anchor[0]]
    with SlotAttention(plan):
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
    with SlotAttention(PLAN) as telling:
        results = [call(length) for length in (3, 5)]
    assert not telling.seen
    assert all(torch.equal(one, call(length)) for one, length in zip(results, (3, 5), strict=True))


def test_attention_over_another_batch_passes():
    with SlotAttention(MergePlan(*(part.expand(2, -1) for part in PLAN[:3]))) as telling:
        attend(4, batch=3)
    assert not telling.seen


@pytest.mark.parametrize("every", [False, True])
def test_first_fitting_attention_is_told_or_every_one(every):
    plain = attend(4)
    with SlotAttention(PLAN, every=every):
        first, second = attend(4), attend(4)
    assert not torch.equal(first, plain)
    assert torch.equal(second, first if every else plain)


def test_nothing_stays_open_after_an_error():
    with pytest.raises(ValueError, match="attention is causal"), SlotAttention(PLAN):
        scaled_dot_product_attention(*noise(3, 1, 2, 4, 4), is_causal=True)
    assert _get_current_function_mode_stack() == []


def test_causal_multihead_attention_is_refused():
    module, tokens = nn.MultiheadAttention(4, 2, batch_first=True), noise(2, 4, 4)
    causal = nn.Transformer.generate_square_subsequent_mask(4)
    with pytest.raises(ValueError, match="attention is causal"), SlotAttention(PLAN):
        module(tokens, tokens, tokens, attn_mask=causal, is_causal=True)


@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (1, 2, 5, 4)])
def test_mask_of_neither_tokens_nor_slots_is_refused(shape):
    with pytest.raises(ValueError, match=r"attn_mask of shape \(.*the 4 tokens or 2 slots"), SlotAttention(SHORT):
        scaled_dot_product_attention(*noise(3, 1, 2, 2, 4), attn_mask=noise(*shape))


def test_other_threads_are_not_told():
    results = []
    with SlotAttention(PLAN, every=True):
        thread = threading.Thread(target=lambda: results.append(attend(4)))
        thread.start()
        thread.join()
    assert torch.equal(results[0], attend(4))


# Under the compiler and autograd.


def merged_attention(tokens: Tensor, module: nn.Module | None, keys: bool) -> Tensor:
    inputs = tokens if keys else Span(1).merge(tokens, PLAN)
    with SlotAttention(PLAN, proportional=True, keys=keys, span=Span(1)):
        if module is not None:
            return module(inputs, inputs, inputs, need_weights=False)[0]
        return scaled_dot_product_attention(inputs[:, None], inputs[:, None], inputs[:, None])


@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("multihead", [False, True])
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


# Spans.


@given(cases(some_policies, dtypes=(torch.float64,)), st.integers(0, 3), st.integers(0, 3), either)
def test_span_agrees_with_loops(case, front, back, proportional):
    span = Span(front, back)
    tokens = noise(len(case.tokens), span.tokens(case.plan), 3).double()
    merged, anchors = span.merge(tokens, case.plan), span.anchors(case.plan)
    restored, bias = (
        span.unmerge(merged, case.plan),
        span.bias(case.plan, dtype=torch.float64, proportional=proportional),
    )
    for sample, sequence in enumerate(tokens.tolist()):
        plan = whole(case.plan, sample, span)
        means = oracle.merge(sequence, plan.slot, plan.size)
        torch.testing.assert_close(merged[sample], tokens.new_tensor(means))
        torch.testing.assert_close(restored[sample], tokens.new_tensor(oracle.unmerge(means, plan.slot)))
        assert anchors[sample % len(anchors)].tolist() == plan.anchor
        row = tokens.new_tensor(oracle.attention_bias(plan.size, proportional=proportional))
        torch.testing.assert_close(bias[sample % len(bias), 0, 0], row)
        assert span.within(tokens)[sample].tolist() == sequence[front : len(sequence) - back]


@given(seeds, st.integers(1, 3), st.integers(0, 2), either)
def test_take_picks_rows_along_any_dimension(seed, batch, dim, shared):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(batch, 4, 5, 6, generator=generator)
    index = torch.randint(4, (1 if shared else batch, 3), generator=generator)
    taken = take(rows, index, dim + 1)
    for sample, place in product(range(batch), range(3)):
        picked = rows[sample].select(dim, int(index[sample % len(index), place]))
        assert torch.equal(taken[sample].select(dim, place), picked)
