"""Merging is linear and differentiable: its derivatives against finite differences, and against each other."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from catome_core import AdaptiveMerge, MergedBlock, PairCache, TokenGrid, gather_anchors, merge, unmerge
from strategies import Case, cases, make_tokens, seeds

double_cases = cases(dtypes=[torch.float64])


def slots_like(case: Case, seed: int) -> Tensor:
    shape = (len(case.tokens), case.plan.size.shape[1], case.tokens.shape[2])
    return make_tokens("normal", shape, torch.Generator().manual_seed(seed))


# The fast mode compares random projections of the Jacobians, which for linear maps is as telling as the whole.
@given(double_cases)
def test_gradient_of_merge(case):
    assert gradcheck(lambda tokens: merge(tokens, case.plan), case.tokens.requires_grad_(), fast_mode=True)


@given(double_cases, seeds)
def test_gradient_of_unmerge(case, seed):
    slots = slots_like(case, seed).requires_grad_()
    assert gradcheck(lambda merged: unmerge(merged, case.plan), slots, fast_mode=True)


@given(double_cases, st.booleans())
def test_gradient_of_gather_anchors(case, single):
    rows = (case.tokens[:1] if single else case.tokens).clone().requires_grad_()
    assert gradcheck(lambda values: gather_anchors(values, case.plan), rows, fast_mode=True)


@given(double_cases, seeds)
def test_the_gradients_of_merge_and_unmerge_are_each_other(case, seed):
    tokens, slots = case.tokens.requires_grad_(), slots_like(case, seed).requires_grad_()
    weights = case.plan.size[..., None]
    of_merge = torch.autograd.grad(merge(tokens, case.plan), tokens, slots)[0]
    of_unmerge = torch.autograd.grad(unmerge(slots, case.plan), slots, tokens)[0]
    # Sums of at most 52 numbers, each below about 30, in float64.
    torch.testing.assert_close(of_merge, unmerge(slots / weights.clamp_min(1), case.plan), rtol=0, atol=1e-12)
    torch.testing.assert_close(of_unmerge, weights * merge(tokens, case.plan), rtol=0, atol=1e-12)


def test_gradients_reach_the_tokens_and_the_weights_of_a_merged_block():
    grid = TokenGrid((4, 4), prefix=1)
    block = MergedBlock(
        torch.nn.Linear(4, 4, dtype=torch.float64),
        PairCache(AdaptiveMerge(threshold=0.2, capacity=0.25, spare="fill")),
        grid,
    )
    tokens = make_tokens("normal", (2, grid.tokens, 4), torch.Generator().manual_seed(0)).requires_grad_()
    block(tokens)
    # Reuse: finite differences must not move the pairs.
    block.cache.refresh = False
    assert gradcheck(lambda values, *_: block(values), (tokens, *block.parameters()))
