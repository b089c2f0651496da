"""Merging is linear and differentiable: its derivatives against finite differences, and against each other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from catome_core import AdaptiveMerge, MergedBlock, MergePlan, PairCache, TokenGrid, gather_anchors, merge, unmerge
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


@given(double_cases)
def test_second_derivatives_and_forward_mode(case):
    """Between two functions that are not linear, which alone would have no second derivative."""
    tokens = case.tokens.requires_grad_()

    def bent(values: Tensor) -> Tensor:
        return unmerge(merge(values.sin(), case.plan).square(), case.plan).sin()

    assert gradcheck(bent, tokens, fast_mode=True, check_forward_ad=True)
    assert gradgradcheck(bent, tokens, fast_mode=True)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_jacobian_in_both_modes_is_the_matrix_of_means():
    """`torch.func` maps over rows and columns, which needs merging to be mapped, too."""
    plan = MergePlan(torch.tensor([[0, 1, 0, 0]]), torch.tensor([[3, 1, 0]]), torch.tensor([[0, 1, 0]]))
    tokens, third = torch.zeros(1, 4, 1, dtype=torch.float64), 1 / 3
    expected = torch.tensor([[third, 0, third, third], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        assert torch.equal(jacobian(lambda values: merge(values, plan))(tokens).view(3, 4), expected)
        copies = jacobian(lambda slots: unmerge(slots, plan))(tokens[:, :3]).view(4, 3)
        assert torch.equal(copies, (expected.T > 0).double())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_in_half_precision_are_rounded_once(dtype):
    """The gradient of a slot is a sum over its tokens, in float32 at least."""
    plan = MergePlan(torch.arange(40)[None] % 8, torch.full((1, 8), 5), torch.arange(8)[None])
    gradient = make_tokens("normal", (1, 40, 64), torch.Generator().manual_seed(0)).to(dtype)
    slots = torch.zeros(1, 8, 64, dtype=dtype, requires_grad=True)
    (found,) = torch.autograd.grad(unmerge(slots, plan), slots, gradient)
    exact = gradient.double().view(5, 8, 64).sum(0, keepdim=True)
    magnitude = gradient.double().abs().view(5, 8, 64).sum(0, keepdim=True)
    bound = torch.finfo(dtype).eps / 2 * exact.abs() + 10 * torch.finfo(torch.float32).eps * magnitude
    assert ((found.double() - exact).abs() <= bound).all()


# ---------------------------------------------------------------- several calls before a backward pass

GRID = TokenGrid((4, 4), prefix=1)
POLICY = AdaptiveMerge(threshold=0.2, capacity=0.25, spare="fill")


def samples() -> list[Tensor]:
    return [make_tokens("normal", (2, GRID.tokens, 4), torch.Generator().manual_seed(seed)) for seed in range(3)]


def block_and_twins() -> tuple[MergedBlock, list[MergedBlock]]:
    """A block, and for each sample one with the same weights and a cache of its own."""
    linear = nn.Linear(4, 4, dtype=torch.float64)
    return MergedBlock(linear, PairCache(POLICY), GRID), [
        MergedBlock(linear, PairCache(POLICY), GRID) for _ in range(3)
    ]


@pytest.mark.parametrize("frozen", [False, True])
def test_gradient_of_several_calls_is_the_sum_of_theirs(frozen):
    """Each call has overwritten the plan of the one before; with frozen tokens, later weights need it all the same."""
    block, twins = block_and_twins()
    losses = [block(tokens.requires_grad_(not frozen)).square().sum() for tokens in samples()]
    block.cache.fit()
    gradients = torch.autograd.grad(sum(losses), [*block.parameters()])
    alone = [
        torch.autograd.grad(twin(tokens).square().sum(), [*twin.parameters()])
        for twin, tokens in zip(twins, samples(), strict=True)
    ]
    for gradient, parts in zip(gradients, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(gradient, sum(parts))


def test_gradient_penalty_of_a_merged_block():
    block, tokens = block_and_twins()[0], samples()[0].requires_grad_()
    block(tokens)
    block.cache.refresh = False
    assert gradgradcheck(lambda values: block(values).sin(), tokens, fast_mode=True)


def test_without_gradients_a_plan_is_a_view_of_static_memory():
    cache, tokens = PairCache(POLICY), samples()[0]
    with torch.no_grad():
        views = cache(tokens, GRID)
    copies = cache(tokens, GRID)
    for view, copy in zip(views[:3] + views.route, copies[:3] + copies.route, strict=True):
        assert torch.equal(view, copy) and view.data_ptr() != copy.data_ptr()
    addresses = {buffer.data_ptr() for buffer in cache.buffers()}
    assert {view.data_ptr() for view in views[:3] + views.route} <= addresses
