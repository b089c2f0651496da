"""Near keys one by one and far keys by the cell, against attention over all keys with weights made in loops."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

import oracle
from catome_core import (
    AdaptiveMerge,
    InterceptAttention,
    MergePlan,
    NearField,
    TokenGrid,
    attend_near_and_far,
    choose_destinations,
    extend,
    tiles,
)
from catome_core.attention.tables import index_field
from near_fields import BATCH, CHANNELS, HEADS, TOLERANCE, scenes, weighted
from strategies import either
from tiers import tiered
from zoo.noise import noise


class RecordCalls(TorchFunctionMode):
    """Keeps the arguments of fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is scaled_dot_product_attention:
            assert not args
            self.calls.append(kwargs)
        return func(*args, **(kwargs or {}))


# Values.


@given(scenes(), either, st.sampled_from([{}, {"scale": 0.3}]))
def test_attention_and_its_gradients_agree_with_loops(scene, takes_mask, options):
    call = {name: one.requires_grad_() for name, one in scene.call().items()}
    actual = attend_near_and_far(call | options, scene.anchors, scene.field, takes_mask=takes_mask)
    expected = weighted(call | options, scene.weights)
    torch.testing.assert_close(actual, expected, **TOLERANCE)
    towards = scene.make(*expected.shape)
    gradients = (torch.autograd.grad(result, list(call.values()), towards) for result in (actual, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=4 * TOLERANCE["atol"])


@given(scenes(), either)
def test_every_token_counts_once_and_near_ones_for_themselves(scene, takes_mask):
    """Where all scores are equal and each value is a unit vector, the result is the weights."""
    field = scene.field
    keys = torch.zeros(1, 1, field.tokens, CHANNELS, dtype=torch.float64)
    call = {"query": keys, "key": keys, "value": torch.eye(field.tokens, dtype=torch.float64)[None, None]}
    weights = attend_near_and_far(call, scene.anchors, field, takes_mask=takes_mask)[0, 0] * field.tokens
    cells = [oracle.cell_of(token, field.grid) for token in range(field.grid.area)]
    image = weights[field.lead : field.lead + len(cells), field.lead : field.lead + len(cells)]
    for cell in set(cells):
        own = torch.tensor([one == cell for one in cells])
        torch.testing.assert_close(image[:, own].sum(1), own.sum().double().expand(len(cells)), rtol=1e-5, atol=1e-4)
        close = [max(abs(a - b) for a, b in zip(one, cell, strict=True)) <= field.near for one in cells]
        near = image[torch.tensor(close)][:, own]
        torch.testing.assert_close(near, torch.ones_like(near), rtol=1e-5, atol=1e-4)
    image.fill_(1)
    torch.testing.assert_close(weights, torch.ones_like(weights), rtol=1e-5, atol=1e-4)


@given(scenes())
def test_near_field_that_covers_the_grid_is_full_attention(scene):
    field = NearField(scene.field.grid, max(scene.field.grid.cells), scene.field.front, scene.field.back)
    call = scene.call()
    assert field.covers_grid and field.keys == field.tokens
    assert torch.equal(attend_near_and_far(call, scene.anchors, field), scaled_dot_product_attention(**call))


def test_tiles_of_a_field_are_worked_out_once():
    """Models make the field anew in every call."""
    grid, query = TokenGrid((20, 26)), torch.zeros(1, 1, 20 * 26, 8)
    with patch.object(tiles.Axis, "cut", wraps=tiles.Axis.cut) as cut:
        for _ in range(3):
            call = {"query": query, "key": query, "value": query}
            attend_near_and_far(call, choose_destinations(grid), NearField(grid, tile=6))
    assert cut.call_count == 2


@given(scenes(), st.sampled_from(["row", "bool row", "rows", "heads"]), either)
def test_mask_of_the_caller_counts_at_near_keys_and_at_anchors(scene, kind, takes_mask):
    call, tokens = scene.call(), scene.field.tokens
    shape = {"row": (BATCH, 1, 1), "bool row": (1,), "rows": (tokens,), "heads": (HEADS, tokens)}[kind]
    mask = scene.make(*shape, tokens)
    if kind == "bool row":
        mask = mask > -1
        mask[..., 0] = True
        # Something is seen by every tile.
        call_mask, added = mask, torch.zeros_like(mask, dtype=torch.float64).masked_fill(~mask, -1000.0)
    else:
        call_mask, added = mask, mask
    actual = attend_near_and_far(call | {"attn_mask": call_mask}, scene.anchors, scene.field, takes_mask=takes_mask)
    torch.testing.assert_close(actual, weighted(call, scene.weights, added), **TOLERANCE)


@given(scenes(), st.sampled_from(["none", "row", "rows"]), either)
def test_queries_of_the_grid_alone_get_what_they_get_among_all(scene, kind, takes_mask):
    """Where text gives keys only."""
    call, field = scene.call(), scene.field
    asked = slice(field.lead, field.tokens - field.back)
    call["query"] = call["query"][:, :, asked]
    rows = {"none": [], "row": [1], "rows": [field.grid.area]}[kind]
    mask = scene.make(*rows, field.tokens) if rows else None
    actual = attend_near_and_far(call | {"attn_mask": mask}, scene.anchors, field, takes_mask=takes_mask)
    expected = weighted(call, scene.weights[asked], 0.0 if mask is None else mask)
    torch.testing.assert_close(actual, expected, **TOLERANCE)


@given(scenes())
def test_fewer_key_heads_than_query_heads(scene):
    call = scene.call(key_heads=1)
    actual = attend_near_and_far(call | {"enable_gqa": True}, scene.anchors, scene.field)
    torch.testing.assert_close(actual, weighted(call, scene.weights), **TOLERANCE)


@pytest.mark.parametrize("takes_mask", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@given(scenes())
def test_half_precision_rounds_queries_keys_and_values_only(dtype, takes_mask, scene):
    call = {name: one.to(dtype) for name, one in scene.call().items()}
    actual = attend_near_and_far(call, scene.anchors, scene.field, takes_mask=takes_mask)
    expected = weighted({name: one.double() for name, one in call.items()}, scene.weights)
    assert actual.dtype == dtype
    # The weight of a far key, as a mask, is rounded as well: log(16) < 4.
    bound = 8 * torch.finfo(dtype).eps * call["value"].double().abs().amax()
    assert ((actual.double() - expected).abs() <= bound).all()


# What the kernel gets.


@given(scenes(), either)
def test_one_fused_call_over_the_predicted_keys(scene, takes_mask):
    """And a second one for tokens of no grid; without a mask where the kernel takes none."""
    field = scene.field
    with RecordCalls() as record:
        attend_near_and_far(scene.call(), scene.anchors, field, takes_mask=takes_mask)
    if field.covers_grid:
        assert len(record.calls) == 1 and field.keys == field.tokens
        return
    tiled, *others = record.calls
    tiles = BATCH * field.tiles
    assert tiled["query"].shape[:3] == (tiles, HEADS, field.queries_per_tile)
    assert tiled["key"].shape[:3] == tiled["value"].shape[:3] == (tiles, HEADS, field.keys)
    assert [call["query"].shape[2] for call in others] == [field.outside] * bool(field.outside)
    assert (tiled.get("attn_mask") is not None) == takes_mask


@given(scenes(), either, st.integers(1, 4000))
def test_pieces_that_a_cache_holds_give_what_one_call_gives(scene, takes_mask, size):
    call, field = scene.call(), scene.field
    whole = attend_near_and_far(call, scene.anchors, field, takes_mask=takes_mask)
    with patch("catome_core.attention.near.CACHED_BYTES", size), RecordCalls() as record:
        parts = attend_near_and_far(call, scene.anchors, field, takes_mask=takes_mask)
    torch.testing.assert_close(parts, whole, **TOLERANCE)
    if not field.covers_grid:
        pieces = [one["key"] for one in (record.calls[:-1] if field.outside else record.calls)]
        assert sum(map(len, pieces)) == BATCH * field.tiles
        numbers = [2 * keys.shape[:3].numel() * CHANNELS * keys.element_size() for keys in pieces]
        assert all(held <= size or len(keys) == BATCH for held, keys in zip(numbers, pieces, strict=True))


@pytest.mark.parametrize(("shape", "rows"), [((8, 12), 1), ((2, 6, 4), 1), ((7, 12), 2 * 24)])
def test_where_the_stride_divides_the_grid_one_row_of_weights_serves_all_tiles(shape, rows):
    field = NearField(TokenGrid(shape), near=0, front=1, tile=2)
    call = dict.fromkeys(("query", "key", "value"), noise(2, 1, field.tokens, 8))
    with RecordCalls() as record:
        attend_near_and_far(call, choose_destinations(field.grid), field)
    assert record.calls[0]["attn_mask"].shape == (rows, 1, 1, field.keys)


def test_dropout_reaches_the_kernel():
    field = NearField(TokenGrid((6, 6)), near=0, front=1, tile=2)
    query = torch.zeros(1, 1, field.tokens, CHANNELS)
    call = {"query": query, "key": query, "value": query + 1, "dropout_p": 1.0}
    assert (attend_near_and_far(call, choose_destinations(field.grid), field) == 0).all()


@pytest.mark.parametrize("shape", tiered([((8, 12),), ((7, 9),), ((2, 6, 6),)], [((7, 9),)]))
def test_one_graph_for_all_offsets(shape):
    torch.compiler.reset()
    counter, grid = CompileCounter(), TokenGrid(shape, prefix=1)
    field = NearField(grid, near=0, front=1, back=2, tile=4)
    compiled = torch.compile(attend_near_and_far, fullgraph=True, backend=counter)
    for step in range(3):
        query, key, value = noise(3, 2, 2, field.tokens, 8, seed=step).unbind()
        call = {"query": query, "key": key, "value": value}
        anchors = choose_destinations(grid, torch.full((grid.destinations,), step))
        torch.testing.assert_close(compiled(call, anchors, field), attend_near_and_far(call, anchors, field))
    assert counter.frame_count == 1


# The index is kept.


def test_index_is_made_once_and_can_be_used_by_any_later_call():
    """In inference mode, then with gradients; a call without values leaves nothing."""
    field = NearField(TokenGrid((10, 6)), near=0, back=1, tile=2)
    anchors, inputs = choose_destinations(field.grid), noise(3, 1, 1, field.tokens, CHANNELS).requires_grad_()

    def attend(inputs: Tensor, anchors: Tensor) -> Tensor:
        return attend_near_and_far(dict(zip(("query", "key", "value"), inputs, strict=True)), anchors, field)

    with FakeTensorMode() as fake:
        assert attend(*(fake.from_tensor(one) for one in (inputs, anchors))).shape == inputs.shape[1:]
    with torch.inference_mode():
        first = attend(inputs, anchors)
    second = attend(inputs, anchors)
    second.sum().backward()
    assert torch.equal(first, second) and inputs.grad is not None
    for alone in (False, True):
        assert index_field(field, inputs, grid_alone=alone) is index_field(field, second, grid_alone=alone)


# Intercepted.


def lattice(field: NearField, anchors: Tensor) -> MergePlan:
    """A slot for every cell and for every token of no grid."""
    policy, grid = AdaptiveMerge(-1, capacity=0, radius=0), field.grid
    match = policy.match(torch.zeros(1, grid.tokens, 1), grid, anchors)
    return extend(policy.plan(match, grid, 0, anchors), field.front, field.back)


@given(scenes(), either, either)
def test_intercepted_attention_sees_near_and_far(scene, heads_in_batch, takes_mask):
    call, plan = scene.call(), lattice(scene.field, scene.anchors)
    inputs = [one.flatten(0, 1) if heads_in_batch else one for one in call.values()]
    with InterceptAttention(plan, merge_keys=True, near=scene.field, takes_mask=takes_mask) as mode:
        actual = scaled_dot_product_attention(*inputs).view(BATCH, HEADS, -1, CHANNELS)
    assert mode.was_called and mode.required
    torch.testing.assert_close(actual, weighted(call, scene.weights), **TOLERANCE)


def test_one_graph_for_all_offsets_where_it_is_intercepted():
    torch.compiler.reset()
    field, counter = NearField(TokenGrid((6, 9), prefix=1), near=0, front=1, tile=4), CompileCounter()

    def attend(inputs: Tensor, plan: MergePlan) -> Tensor:
        with InterceptAttention(plan, merge_keys=True, near=field):
            return scaled_dot_product_attention(*inputs)

    compiled = torch.compile(attend, fullgraph=True, backend=counter)
    for step in range(2):
        inputs = noise(3, 1, 2, field.tokens, CHANNELS, seed=step)
        plan = lattice(field, choose_destinations(field.grid, torch.tensor(step)))
        torch.testing.assert_close(compiled(inputs, plan), attend(inputs, plan))
    assert counter.frame_count == 1


# What it refuses.

FIELD = NearField(TokenGrid((6, 6)), near=0, tile=2)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"is_causal": True}, "attention is causal"),
        ({"key": torch.zeros(1, 1, 9, 4)}, r"key has shape \(1, 1, 9, 4\); expected \(batch, heads, 36, channels\)"),
        ({"query": torch.zeros(1, 36, 4)}, r"query has shape \(1, 36, 4\); expected"),
        ({"query": torch.zeros(1, 1, 35, 4)}, r"queries may be those of the grid alone, here 36"),
        (
            {"attn_mask": torch.zeros(5, 36)},
            r"attn_mask has shape \(5, 36\); expected one row or one for each of the",
        ),
        ({"attn_mask": torch.zeros(36)}, r"attn_mask has shape \(36,\); expected"),
    ],
)
def test_calls_that_do_not_fit_are_refused(changed, message):
    call = {name: torch.zeros(1, 1, 36, 4) for name in ("query", "key", "value")}
    with pytest.raises(ValueError, match=message):
        attend_near_and_far(call | changed, choose_destinations(FIELD.grid), FIELD)


def test_anchors_of_another_grid_are_refused():
    call = {name: torch.zeros(1, 1, 36, 4) for name in ("query", "key", "value")}
    with pytest.raises(ValueError, match=r"anchors has shape \(4,\); expected \(9,\)"):
        attend_near_and_far(call, choose_destinations(TokenGrid((4, 4))), FIELD)


def test_causal_attention_is_refused_where_it_is_intercepted():
    plan = lattice(FIELD, choose_destinations(FIELD.grid))
    mode = InterceptAttention(plan, merge_keys=True, near=FIELD)
    with pytest.raises(ValueError, match="attention is causal"), mode:
        scaled_dot_product_attention(*noise(3, 1, 1, 36, 4), is_causal=True)


def test_multihead_attention_that_hides_its_heads_is_refused():
    plan, module = lattice(FIELD, choose_destinations(FIELD.grid)), nn.MultiheadAttention(4, 2, batch_first=True)
    tokens, mode = noise(2, 36, 4), InterceptAttention(plan, merge_keys=True, near=FIELD)
    with pytest.raises(ValueError, match=r"nn\.MultiheadAttention got a near field"), mode:
        module(tokens, tokens, tokens)


@pytest.mark.parametrize(
    ("field", "options", "found"),
    [
        (FIELD, {"merge_keys": False}, r"\(1, 36, 9\) and merge_keys=False"),
        (NearField(FIELD.grid, front=1), {}, r"\(1, 36, 9\) and merge_keys=True; expected \(1, 37, 10\) and True"),
        (NearField(TokenGrid((6, 6), 3)), {}, r"expected \(1, 36, 4\) and True for NearField\("),
    ],
)
def test_plans_of_another_field_are_refused(field, options, found):
    plan = lattice(FIELD, choose_destinations(FIELD.grid))
    with pytest.raises(ValueError, match=found):
        InterceptAttention(plan, near=field, **{"merge_keys": True} | options)


def test_plan_that_differs_between_samples_is_refused():
    plan = lattice(FIELD, choose_destinations(FIELD.grid))
    plan = MergePlan(*(part.expand(2, -1) for part in plan[:3]))
    with pytest.raises(ValueError, match=r"\(2, 36, 9\).*which all samples share"):
        InterceptAttention(plan, merge_keys=True, near=FIELD)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"near": -1}, ValueError, "near is -1; expected 0 or more cells"),
        ({"front": 0.5}, TypeError, r"front is 0.5; expected 0 or more tokens"),
        ({"back": -2}, ValueError, "back is -2; expected 0 or more tokens"),
        ({"tile": 0}, ValueError, "tile is 0; expected a positive number of tokens"),
        ({"grid": (8, 8)}, TypeError, r"grid is \(8, 8\); expected a TokenGrid"),
    ],
)
def test_fields_that_mean_nothing_are_refused(options, kind, message):
    with pytest.raises(kind, match=message):
        NearField(**{"grid": TokenGrid((4, 4))} | options)
