"""Sizes of zero, numbers of any magnitude, and tensors without values."""

import pytest
import torch

from catome_core import AdaptiveMerge, MergedBlock, PairCache, TokenGrid, fit_capacity, match_tokens, merge, unmerge
from strategies import DTYPES
from tiers import tiered
from zoo.own_blocks import WIDTH, OwnSoftmax

GRIDS = (TokenGrid((4, 4)), TokenGrid((2, 4, 4), prefix=1))
LINE = TokenGrid((1, 4))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("radius", tiered([None, 0, 1], [1]))
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("batch", "channels"), [(0, 8), (2, 0), (0, 0), (2, 8)])
def test_any_batch_and_any_channels_on_any_device(batch, channels, shared, radius, device):
    for grid in GRIDS:
        tokens = torch.randn(batch, grid.tokens, channels, device=device)
        policy = AdaptiveMerge(0.5, radius=radius, shared=shared)
        plan = policy(tokens, grid)
        merged = merge(tokens, plan)
        assert merged.shape == (batch, grid.slots(None), channels)
        assert unmerge(merged, plan).shape == tokens.shape
        score = match_tokens(tokens, grid, radius=radius, shared=shared).score
        assert device == "meta" or (score.abs() <= 1).all()


@pytest.mark.parametrize("shared", [False, True])
def test_empty_batch_passes_a_wrapped_block_and_is_fitted(shared):
    cache, grid = PairCache(AdaptiveMerge(0.5, shared=shared)), GRIDS[0]
    block = MergedBlock(OwnSoftmax(), cache, grid, mask_argument="bias")
    assert block(torch.randn(0, 16, WIDTH)).shape == (0, 16, WIDTH)
    assert not cache.match().score.isnan().any()
    assert fit_capacity([cache])[grid] >= 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("radius", [None, 0])
def test_similarity_is_the_same_at_any_magnitude(dtype, radius):
    """From the smallest normal number to the largest number, in one sample; -1 is for what is not finite."""
    tokens = torch.tensor([[[0.5, 0.0], [0.25, 0.25], [0.25, 0.0], [0.0, 0.5]]], dtype=dtype)
    limits = torch.finfo(dtype)
    expected = match_tokens(tokens, LINE, radius=radius)
    for first in (limits.max, 1.0, limits.smallest_normal * 8):
        for second in (limits.max, 1.0, limits.smallest_normal * 8):
            scale = torch.tensor([first, second, second, first], dtype=dtype)[None, :, None]
            match = match_tokens(tokens * scale, LINE, radius=radius)
            torch.testing.assert_close(match.score, expected.score, rtol=0, atol=1e-6)
            assert torch.equal(match.target, expected.target)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_only_what_is_not_finite_is_never_similar(bad):
    tokens = torch.ones(1, 4, 2)
    tokens[0, 1, 0] = bad
    assert match_tokens(tokens, LINE).score.tolist() == [[-1.0, pytest.approx(1.0)]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_negative_zero_comes_back_as_zero_and_everything_else_bit_by_bit(dtype):
    """Laws 5 and 12: equal as numbers. Sums begin with 0.0, and a pass for the sign would cost more than the merge."""
    tokens = torch.tensor([[[-0.0, 0.0], [-1.5, 2.5], [3.0, -0.0], [-0.0, 1.0]]], dtype=dtype)
    plan = AdaptiveMerge(threshold=1)(tokens, LINE)
    back = unmerge(merge(tokens, plan), plan)
    assert torch.equal(back, tokens)
    assert torch.equal(back.signbit(), tokens.signbit() & (tokens != 0))
