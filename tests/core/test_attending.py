"""Attention without a mask against attention with one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from catome_core import (
    AdaptiveMerge,
    InterceptAttention,
    MergePlan,
    TokenGrid,
    attend_without_mask,
    attention_bias,
)
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


@given(cases(), st.booleans(), st.booleans(), seeds)
def test_an_intercepted_kernel_without_masks_does_what_one_with_masks_does(case, proportional, merge_keys, seed):
    """With a scale of its own, grouped heads and keys that merge where they are intercepted."""
    slots, tokens = case.plan.size.shape[1], case.grid.tokens
    generator, length = torch.Generator().manual_seed(seed), tokens if merge_keys else slots
    shapes = [(len(case.tokens), heads, length, 8) for heads in (4, 2, 2)]
    heads = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    results = []
    for takes_mask in (True, False):
        mode = InterceptAttention(case.plan, proportional=proportional, merge_keys=merge_keys, takes_mask=takes_mask)
        with WithoutMasks(takes_mask) as kernel, mode:
            results.append(scaled_dot_product_attention(*heads, scale=0.5, enable_gqa=True))
        assert kernel.calls == 1
    # The bias itself is a float32.
    torch.testing.assert_close(*results, rtol=0, atol=16 * torch.finfo(torch.float32).eps)


class WithoutMasks(TorchFunctionMode):
    """Counts fused attention, and asserts that it has no mask where none is taken."""

    def __init__(self, takes_mask: bool) -> None:
        super().__init__()
        self.takes_mask, self.calls = takes_mask, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            self.calls += 1
            assert self.takes_mask or kwargs.get("attn_mask") is None
        return func(*args, **kwargs)


def test_padding_stays_out_in_half_precision_at_any_scale():
    plan = MergePlan(torch.tensor([[0, 0, 0]]), torch.tensor([[3, 0]]), torch.tensor([[0, 0]]))
    key, value = torch.zeros(2, 1, 1, 2, 8, dtype=torch.float16).unbind()
    value[:, :, 1] = 1
    with InterceptAttention(plan, proportional=True, takes_mask=False):
        assert (scaled_dot_product_attention(key, key, value, scale=1e-3) == 0).all()


def test_heads_without_room_for_the_bias_are_an_error():
    plan = MergePlan(torch.tensor([[0, 0]]), torch.tensor([[2]]), torch.tensor([[0]]))
    heads = torch.zeros(1, 1, 1, 256)
    with InterceptAttention(plan, takes_mask=False), pytest.raises(ValueError, match=r"256 channels.*needs 8 more"):
        scaled_dot_product_attention(heads, heads, heads)


def test_it_compiles_without_a_break():
    grid = TokenGrid((4, 4))
    plan = AdaptiveMerge(0.2)(torch.randn(2, 16, 8), grid)
    heads = torch.randn(3, 2, 2, 16, 8).unbind()
    compiled = torch.compile(attend_without_mask, fullgraph=True, backend="aot_eager")
    expected = attend_without_mask(*heads, plan, proportional=True)
    torch.testing.assert_close(compiled(*heads, plan, proportional=True), expected)
