"""Attention without a mask against attention with one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from catome_core import AdaptiveMerge, TokenGrid, attend_without_mask, attention_bias
from strategies import cases, seeds


def heads_of(case, channels, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    lengths = (case.grid.tokens, case.plan.size.shape[1], case.plan.size.shape[1])
    shapes = [(len(case.tokens), 2, length, channels) for length in lengths]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


@given(cases(), st.sampled_from([5, 8, 40, 62]), st.booleans(), seeds)
def test_channels_do_what_the_mask_does(case, channels, proportional, seed):
    query, key, value = heads_of(case, channels, seed)
    bias = attention_bias(case.plan, dtype=torch.float32, proportional=proportional).double()
    expected = scaled_dot_product_attention(query, key, value, attn_mask=bias)
    actual = attend_without_mask(query, key, value, case.plan, proportional=proportional)
    # The bias itself is a float32.
    torch.testing.assert_close(actual, expected, rtol=0, atol=16 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@given(cases(), st.sampled_from([40, 64, 128]), seeds)
def test_half_precision_does_not_round_the_weights(dtype, case, channels, seed):
    """With equal scores, the result is the mean of the values by size: only the values are rounded."""
    query, key, value = heads_of(case, channels, seed, dtype)
    size = case.plan.size[:, None, :, None].double()
    expected = (size * value.double()).sum(2, keepdim=True) / size.sum(2, keepdim=True)
    actual = attend_without_mask(query, torch.zeros_like(key), value, case.plan, proportional=True)
    bound = 2 * torch.finfo(dtype).eps * value.double().abs().amax()
    assert ((actual.double() - expected).abs() <= bound).all()


def test_it_compiles_without_a_break():
    grid = TokenGrid((4, 4))
    plan = AdaptiveMerge(0.2)(torch.randn(2, 16, 8), grid)
    heads = torch.randn(3, 2, 2, 16, 8).unbind()
    compiled = torch.compile(attend_without_mask, fullgraph=True, backend="aot_eager")
    expected = attend_without_mask(*heads, plan, proportional=True)
    torch.testing.assert_close(compiled(*heads, plan, proportional=True), expected)
