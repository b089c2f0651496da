"""Laws of composed plans: one merge after another is one merge."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import pad

from catome_core import (
    MergePlan,
    TokenGrid,
    compose,
    extend,
    match_tokens,
    merge,
    merge_weighted,
    plan_merge,
    sort_slots,
    unmerge,
)
from zoo.noise import noise


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


def first_of(plan):
    return MergePlan(*(part[:1] for part in plan[:3]))


@given(two_plans(), st.booleans())
def test_plan_that_the_batch_shares_composes_with_one_of_each_sample(drawn, first_is_shared):
    tokens, first, then = drawn
    first, then = (first_of(first), then) if first_is_shared else (first, first_of(then))
    stepwise = merge_weighted(merge(tokens, first), first.size, then)
    torch.testing.assert_close(merge(tokens, compose(first, then)), stepwise, rtol=1e-5, atol=1e-6)
    for sample in range(2):
        alone = [MergePlan(*(part[sample % len(part)][None] for part in plan[:3])) for plan in (first, then)]
        of_sample = merge_weighted(merge(tokens[sample : sample + 1], alone[0]), alone[0].size, alone[1])
        torch.testing.assert_close(stepwise[sample : sample + 1], of_sample)


@given(two_plans())
def test_slots_in_order_are_the_same_slots(drawn):
    tokens, plan, _ = drawn
    ordered = sort_slots(plan)
    assert torch.equal(unmerge(merge(tokens, ordered), ordered), unmerge(merge(tokens, plan), plan))
    assert torch.equal(ordered.anchor, plan.anchor.sort(1)[0])
    assert torch.equal(ordered.anchor.gather(1, ordered.slot), plan.anchor.gather(1, plan.slot))
    assert torch.equal(ordered.size.gather(1, ordered.slot), plan.size.gather(1, plan.slot))


@given(two_plans(), st.integers(1, 3), st.integers(0, 2))
def test_padding_comes_after_slots_in_order(drawn, padding, back):
    _, plan, _ = drawn
    padded = MergePlan(plan.slot, pad(plan.size, (0, padding)), pad(plan.anchor, (0, padding)))
    # Then padding is in the middle.
    plan, padded = sort_slots(extend(plan, back=back)), sort_slots(extend(padded, back=back))
    expected = plan.slot, pad(plan.size, (0, padding)), pad(plan.anchor, (0, padding))
    assert all(map(torch.equal, padded[:3], expected))


@given(two_plans(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_kept_slots_come_out_bit_exact_whatever_their_size(drawn, dtype):
    tokens, first, then = drawn
    slots, size = merge(tokens, first).to(dtype), 7 * first.size + 3
    merged = merge_weighted(slots, size, then)
    alone = then.size == 1
    assert torch.equal(merged[alone], slots.gather(1, then.anchor[..., None].expand(-1, -1, 3))[alone])
    assert merged.dtype == dtype
