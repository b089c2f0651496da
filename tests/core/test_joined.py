"""Near and far keys in calls of their own, whose results are joined: on a GPU alone, so a CPU is made to do it here."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode

from catome_core import InterceptAttention, NearField, TokenGrid, attend_near_and_far, choose_destinations, lattice_plan
from catome_core.attention import joined
from catome_core.attention.tables import index_field
from near_fields import BATCH, HEADS, TOLERANCE, Scene, scenes, weighted
from probes import Operations
from zoo.noise import noise

CHANNELS = 8
KERNELS = {
    "cpu": "aten._scaled_dot_product_flash_attention_for_cpu.default",
    joined.FLASH: "aten._scaled_dot_product_flash_attention.default",
    joined.EFFICIENT: "aten._scaled_dot_product_efficient_attention.default",
    joined.CUDNN: "aten._scaled_dot_product_cudnn_attention.default",
}
FIELD = NearField(TokenGrid((8, 12), prefix=1), near=0, front=1, back=2, tile=2)

gathered = patch.object(joined, "JOINED_ON", ())


@pytest.fixture(autouse=True, scope="module")
def joined_on_a_cpu():
    with patch.object(joined, "JOINED_ON", ("cpu", "cuda")):
        yield


def calls_apart(field: NearField) -> int:
    """One of the near keys, one for every dimension that a window does not cover, one of the tokens of no grid."""
    return len(field.parts) + bool(field.outside)


def attend(scene: Scene, call: dict) -> tuple[Tensor, int]:
    """The result, and how many calls of the kernel were made."""
    results = []
    names = Operations.of(lambda: results.append(attend_near_and_far(call, scene.anchors, scene.field)))
    return results[0], names.count(KERNELS["cpu"])


def at_offset(offset: int) -> Tensor:
    return choose_destinations(FIELD.grid, torch.full((FIELD.grid.destinations,), offset))


def make_call(*, channels: int = CHANNELS, seed: int = 0) -> dict[str, Tensor]:
    return dict(zip(("query", "key", "value"), noise(3, BATCH, HEADS, FIELD.tokens, channels, seed=seed), strict=True))


# Values.


@given(scenes(whole_cells=True), st.sampled_from([{}, {"scale": 0.3}, {"dropout_p": 0.0, "is_causal": False}]))
def test_joined_attention_agrees_with_loops(scene, options):
    call = scene.call(channels=CHANNELS) | options
    actual, calls = attend(scene, call)
    torch.testing.assert_close(actual, weighted(call, scene.weights), **TOLERANCE)
    if not scene.field.covers_grid and min(part.keys for part in scene.field.parts) > 1:
        assert calls == calls_apart(scene.field)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@given(scenes(whole_cells=True))
def test_joined_attention_rounds_as_the_kernel_does(dtype, scene):
    call = {name: one.to(dtype) for name, one in scene.call(channels=CHANNELS).items()}
    actual, _ = attend(scene, call)
    expected = weighted({name: one.double() for name, one in call.items()}, scene.weights)
    assert actual.dtype == dtype
    bound = 8 * torch.finfo(dtype).eps * call["value"].double().abs().amax()
    assert ((actual.double() - expected).abs() <= bound).all()


@given(scenes(whole_cells=True))
def test_both_ways_agree_and_leave_the_tokens_in_the_same_order(scene):
    call = {name: one.float() for name, one in scene.call(channels=CHANNELS).items()}
    ours, _ = attend(scene, call)
    with gathered:
        theirs, _ = attend(scene, call)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_queries_of_the_grid_alone_are_joined_and_attend_to_all():
    call, grid = make_call(), slice(FIELD.lead, FIELD.tokens - FIELD.back)
    alone = call | {"query": call["query"][:, :, grid]}
    results = []
    names = Operations.of(lambda: results.append(attend_near_and_far(alone, at_offset(0), FIELD)))
    assert names.count(KERNELS["cpu"]) == len(FIELD.parts)
    torch.testing.assert_close(results[0], attend_near_and_far(call, at_offset(0), FIELD)[:, :, grid])


@given(scenes(whole_cells=True))
def test_memory_may_have_any_order(scene):
    """Heads side by side, as models have them, and channels not even next to each other."""
    call = scene.call(channels=CHANNELS)
    expected, _ = attend(scene, call)
    orders = {"query": (0, 2, 1, 3), "key": (3, 0, 1, 2), "value": (1, 0, 2, 3)}
    for name, order in orders.items():
        back = [order.index(dim) for dim in range(4)]
        call[name] = call[name].permute(order).contiguous().permute(back)
    torch.testing.assert_close(attend(scene, call)[0], expected, **TOLERANCE)


def test_scores_that_overflow_no_exponential():
    """Every part has another largest score, thousands apart."""
    call = make_call()
    call["query"] *= 1000
    with gathered:
        expected = attend_near_and_far(call, at_offset(0), FIELD)
    actual = attend_near_and_far(call, at_offset(0), FIELD)
    assert actual.isfinite().all()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-3)


# What tiles share.


@given(scenes().filter(lambda scene: not scene.field.covers_grid))
def test_consecutive_tiles_share_what_is_far(scene):
    index = index_field(scene.field, torch.empty(0))
    tiles = [cells.repeat_interleave(scene.field.tiles // len(cells), 0) for cells in index.beyond]
    assert torch.equal(torch.cat(tiles, 1), index.far)
    assert [cells.shape for cells in (index.near, *index.beyond)] == scene.field.parts


# Which calls are joined.


@pytest.mark.parametrize(
    ("options", "channels", "is_joined"),
    [
        ({}, 8, True),
        ({}, 128, True),
        ({"scale": 2.0}, 8, True),
        ({"attn_mask": torch.zeros(1, FIELD.tokens)}, 8, False),
        ({"dropout_p": 0.5}, 8, False),
        ({"value": torch.ones(BATCH, HEADS, FIELD.tokens, 16)}, 8, False),
        ({"query": torch.ones(BATCH, 2 * HEADS, FIELD.tokens, 8), "enable_gqa": True}, 8, False),
        ({"query": torch.ones(BATCH, HEADS, FIELD.tokens, 8, requires_grad=True)}, 8, False),
        ({}, 12, False),
        ({}, 136, False),
    ],
)
def test_calls_that_need_more_are_gathered(options, channels, is_joined):
    call = make_call(channels=channels) | options
    with patch.object(joined, "choose_backend", return_value=joined.FLASH):
        assert (joined.joins_on(call, FIELD) is not None) == is_joined
    assert attend_near_and_far(call, at_offset(0), FIELD).shape == call["query"].shape[:3] + call["value"].shape[3:]


def test_the_rest_of_what_is_asked():
    call, kept = make_call(), joined.FLASH
    assert joined.joins_on(call, FIELD) == kept
    with torch.autocast("cpu"):
        assert joined.joins_on(call, FIELD) is None
        assert attend_near_and_far(call, at_offset(0), FIELD).dtype == torch.bfloat16
    partial, single = NearField(TokenGrid((7, 12)), near=0, tile=2), NearField(TokenGrid((1, 3), 1), near=0, tile=2)
    assert joined.joins_on(call, partial) is joined.joins_on(call, single) is None
    assert single.parts[1].keys == 1
    for other in (-1, 0, 4):
        with patch.object(joined, "choose_backend", return_value=other):
            assert joined.joins_on(call, FIELD) is None
    query = make_call()["query"].requires_grad_()
    with torch.no_grad():
        assert joined.joins_on(call | {"query": query}, FIELD) == kept
    with patch.object(joined, "JOINED_ON", ("cuda",)):
        assert joined.joins_on(call, FIELD) is None


def test_gradients_of_functions_pass():
    call, anchors = make_call(), at_offset(0)

    def total(query: Tensor) -> Tensor:
        return attend_near_and_far(call | {"query": query}, anchors, FIELD).square().sum()

    ours = torch.func.grad(total)(call["query"])
    query = call["query"].clone().requires_grad_()
    (theirs,) = torch.autograd.grad(total(query), query)
    torch.testing.assert_close(ours, theirs)


def test_a_kernel_that_takes_no_mask_is_called_as_before():
    """It need not be one of torch's own."""
    with patch.object(joined, "choose_backend", side_effect=AssertionError):
        attend_near_and_far(make_call(), at_offset(0), FIELD, takes_mask=False)


@pytest.mark.parametrize("backend", [joined.FLASH, joined.EFFICIENT, joined.CUDNN, 0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_gpu_calls_the_kernel_that_fused_attention_would(backend, dtype):
    """Tensors without values have the shapes that its kernels give; no GPU is needed."""
    field = NearField(TokenGrid((8, 12)), near=0, tile=2)
    with FakeTensorMode(), patch.object(joined, "choose_backend", return_value=backend), torch.device("cuda"):
        rows = torch.empty(3, BATCH, field.tokens, HEADS, 64, dtype=dtype).transpose(2, 3)
        call = dict(zip(("query", "key", "value"), rows, strict=True))
        anchors, results = choose_destinations(field.grid), []
        names = Operations.of(lambda: results.append(attend_near_and_far(call, anchors, field)))
    assert (results[0].shape, results[0].dtype, results[0].device.type) == (rows[0].shape, dtype, "cuda")
    called = {name: names.count(name) for name in KERNELS.values() if names.count(name)}
    if backend:
        assert called == {KERNELS[backend]: len(field.parts)}
    else:
        # What fused attention itself takes, where there is a GPU.
        assert sum(called.values()) <= 1


# Compiled.


def test_one_graph_for_all_offsets():
    torch.compiler.reset()
    counter = CompileCounter()
    compiled = torch.compile(attend_near_and_far, fullgraph=True, backend=counter)
    for step in range(3):
        call, anchors = make_call(seed=step), at_offset(step)
        expected = attend_near_and_far(call, anchors, FIELD)
        torch.testing.assert_close(compiled(call, anchors, FIELD), expected, rtol=0, atol=1e-6)
    assert counter.frame_count == 1


@pytest.mark.thorough
def test_one_graph_where_it_is_intercepted():
    torch.compiler.reset()
    field, counter = NearField(TokenGrid((8, 12), prefix=1), near=0, tile=2), CompileCounter()

    def attend(inputs: Tensor, offsets: Tensor) -> Tensor:
        with InterceptAttention(lattice_plan(field.grid, offsets), merge_keys=True, near=field):
            return torch.nn.functional.scaled_dot_product_attention(*inputs)

    compiled = torch.compile(attend, fullgraph=True, backend=counter)
    for step in range(2):
        inputs = noise(3, BATCH, HEADS, field.tokens, CHANNELS, seed=step)
        offsets = torch.full((field.grid.destinations,), step)
        names = Operations.of(lambda inputs=inputs, offsets=offsets: attend(inputs, offsets))
        assert names.count(KERNELS["cpu"]) == calls_apart(field)
        torch.testing.assert_close(compiled(inputs, offsets), attend(inputs, offsets), rtol=0, atol=1e-6)
    assert counter.frame_count == 1
