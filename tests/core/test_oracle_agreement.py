"""Every vectorized function against the loops of `oracle.py`."""

from functools import partial
from math import log
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import oracle
from catome_core import (
    AdaptiveMerge,
    Match,
    MergedBlock,
    MergePlan,
    PairCache,
    TokenGrid,
    attention_bias,
    choose_destinations,
    count_overflow,
    count_unmergeable,
    extend,
    gather_anchors,
    jaccard_distance,
    match_tokens,
    merge,
    plan_merge,
    summarize,
    unmerge,
    windows,
)
from catome_core.matching import match_rows
from catome_core.planning import index_plan
from catome_core.similarity import UnitRows
from strategies import (
    DTYPES,
    FINITE,
    Case,
    cases,
    cell_offsets,
    destinations_at,
    make_tokens,
    policies,
    radii,
    seeds,
    token_grids,
    tokens_for,
)

EVERYTHING = [*FINITE, "special"]
EPS = {dtype: torch.finfo(dtype).eps for dtype in DTYPES}
# A cosine of at most 8 channels: one rounding per product and sum, a few more in the two norms; all in float32.
SCORE_TOLERANCE = 32 * EPS[torch.float32]


def equal(actual: Tensor, expected: list) -> bool:
    """Same shape and values, NaN equal to NaN, the sign of zero aside."""
    wanted = torch.tensor(expected, dtype=torch.float64)
    return torch.equal(actual.double().nan_to_num(7e77), wanted.nan_to_num(7e77))


def plans_of(case: Case) -> list[tuple[list[int], list[int], list[int]]]:
    """(slot, size, anchor) of every sample of the batch, as lists; a shared plan is repeated."""
    rows = list(zip(*(part.tolist() for part in case.plan[:3]), strict=True))
    return rows * len(case.tokens) if len(rows) == 1 else rows


# ---------------------------------------------------------------- grid


@given(token_grids())
def test_grid_counts(grid):
    chosen = oracle.destinations(grid)
    assert grid.tokens == grid.prefix + len(oracle.positions(grid))
    assert (grid.destinations, grid.sources) == (len(chosen), len(oracle.sources(grid, chosen)))
    assert torch.Size(grid.cells).numel() == grid.destinations


def test_grids_that_lie_the_same_are_equal():
    """Else a cache would take one for another grid."""
    as_json = TokenGrid([4, 6], [2, 2], 1)  # type: ignore[arg-type]
    assert len({as_json, TokenGrid((4, 6), prefix=1), TokenGrid((4, 6), (2, 2), 1)}) == 1


@given(st.data(), token_grids())
def test_destinations(data, grid):
    offsets = data.draw(cell_offsets(grid))
    assert choose_destinations(grid).tolist() == oracle.destinations(grid)
    if offsets:
        assert choose_destinations(grid, torch.tensor(offsets)).tolist() == oracle.destinations(grid, offsets)
        assert choose_destinations(grid, offsets[0]).tolist() == oracle.destinations(grid, offsets[:1] * len(offsets))


@given(token_grids(), st.integers(0, 99))
def test_random_destinations_are_one_of_each_cell(grid, seed):
    drawn, again = (choose_destinations(grid, generator=torch.Generator().manual_seed(seed)).tolist() for _ in range(2))
    assert drawn == again
    assert [oracle.cell_of(token, grid) for token in drawn] == oracle.cells(grid)


def test_random_destinations_reach_every_token_of_a_cell():
    grid = TokenGrid((4, 4))
    generator = torch.Generator().manual_seed(0)
    seen = {token for _ in range(64) for token in choose_destinations(grid, generator=generator).tolist()}
    assert seen == set(range(16))


# ---------------------------------------------------------------- matching


def check_match(tokens: Tensor, grid: TokenGrid, offsets, radius, shared: bool, match=match_tokens) -> None:
    """The chosen destination is as good as any, up to rounding, and the score is the one it must have."""
    found = match(tokens, grid, radius=radius, shared=shared, destinations=destinations_at(grid, offsets))
    chosen = oracle.destinations(grid, offsets)
    batch = tokens.tolist()
    groups = [batch] if shared else [[sequence] for sequence in batch]
    assert found.score.dtype == torch.float32 and found.target.dtype == torch.int64
    assert found.score.shape == found.target.shape == (len(groups), grid.sources)
    for sequences, scores, targets in zip(groups, found.score.tolist(), found.target.tolist(), strict=True):
        for source, score, target in zip(oracle.sources(grid, chosen), scores, targets, strict=True):
            choices = oracle.similarities(sequences, source, grid, chosen, radius)
            assert target in choices, "out of reach"
            assert choices[target] >= max(choices.values()) - SCORE_TOLERANCE
            expected = oracle.score(sequences, source, target, choices[target], grid, chosen)
            assert score == pytest.approx(expected, abs=SCORE_TOLERANCE, rel=0)
            assert -1 <= score <= 1


@pytest.mark.parametrize("regime", EVERYTHING)
@given(st.data(), token_grids(), radii, st.booleans())
def test_match(regime, data, grid, radius, shared):
    check_match(data.draw(tokens_for(grid, [regime])), grid, data.draw(cell_offsets(grid)), radius, shared)


def match_in_chunks(tokens: Tensor, grid: TokenGrid, *, destinations, max_elements: int, **options) -> Match:
    destinations = choose_destinations(grid) if destinations is None else destinations
    return match_rows(UnitRows.of(tokens, grid.prefix, max_elements), grid, destinations, **options)


@given(st.data(), token_grids(), radii, st.booleans(), st.integers(8, 512), st.integers(1, 3))
def test_match_in_chunks(data, grid, radius, shared, max_elements, side):
    match = partial(match_in_chunks, max_elements=max_elements)
    with patch.dict(windows.TILE_CELLS, {2: side, 3: side}):
        check_match(data.draw(tokens_for(grid)), grid, data.draw(cell_offsets(grid)), radius, shared, match)


@given(st.data(), token_grids(), radii, st.booleans())
def test_exact_ties_go_to_the_first_destination(data, grid, radius, shared):
    # Three samples would make thirds of the multiples of 1/4: rounding again.
    tokens = data.draw(tokens_for(grid, regimes=["exact"], batches=st.integers(1, 2)))
    found = match_tokens(tokens, grid, radius=radius, shared=shared)
    expected = oracle.match(tokens.tolist(), grid, radius=radius, shared=shared)
    assert equal(found.score, [[score for score, _ in row] for row in expected])
    assert equal(found.target, [[target for _, target in row] for row in expected])


@pytest.mark.parametrize("radius", [None, 1])
def test_autocast_does_not_round_the_similarity(radius):
    grid = TokenGrid((6, 6))
    tokens = make_tokens("normal", (2, 36, 8), torch.Generator().manual_seed(0)).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = match_tokens(tokens, grid, radius=radius)
    assert found.score.dtype == torch.float32
    assert all(map(torch.equal, found, match_tokens(tokens, grid, radius=radius)))


# ---------------------------------------------------------------- planning


def check_plan(case: Case, rows: list[list[tuple[float, int]]]) -> None:
    expected = [oracle.plan(row, case.grid, **case.rule, offsets=case.offsets) for row in rows]
    for part, wanted in zip(case.plan[:3], zip(*expected, strict=True), strict=True):
        assert part.dtype == torch.int64
        assert equal(part, list(wanted))


@given(cases(regimes=EVERYTHING))
def test_plan_of_the_same_match(case):
    check_plan(
        case, [list(zip(*row, strict=True)) for row in zip(*(part.tolist() for part in case.match), strict=True)]
    )


@given(cases(policies(st.just(False)), regimes=["exact"]))
def test_plan_from_the_tokens(case):
    check_plan(case, oracle.match(case.tokens.tolist(), case.grid, radius=case.policy.radius, offsets=case.offsets))


@given(cases(regimes=EVERYTHING))
def test_policy_is_match_then_plan(case):
    by_policy = case.policy(case.tokens, case.grid, destinations_at(case.grid, case.offsets))
    assert all(map(torch.equal, by_policy[:3], case.plan[:3]))
    again = plan_merge(case.match, case.grid, **case.rule, destinations=destinations_at(case.grid, case.offsets))
    assert all(map(torch.equal, again[:3], case.plan[:3]))


@given(cases(regimes=EVERYTHING))
def test_overflow(case):
    rule = {name: case.rule[name] for name in ("threshold", "capacity")}
    counted = count_overflow(case.match, case.grid, **rule)
    assert counted.dtype == torch.int64
    assert counted.tolist() == [oracle.overflow(row, case.grid, **rule) for row in case.match.score.tolist()]
    needed = count_unmergeable(case.match, case.policy.threshold)
    assert needed.dtype == torch.int64
    assert needed.tolist() == [oracle.unmergeable(row, case.policy.threshold) for row in case.match.score.tolist()]


# ---------------------------------------------------------------- merging


@given(cases())
def test_merge(case):
    merged = merge(case.tokens, case.plan)
    assert merged.dtype == case.tokens.dtype
    plans = plans_of(case)
    expected = [oracle.merge(x, slot, size) for x, (slot, size, _) in zip(case.tokens.tolist(), plans, strict=True)]
    wanted = torch.tensor(expected, dtype=torch.float64)
    # Half an eps for the rounding to the dtype; one of the accumulator, float32 at least, for every token of a slot.
    wide = min(EPS[merged.dtype], EPS[torch.float32])
    largest = case.tokens.double().abs().amax()
    bound = wanted.abs() * EPS[merged.dtype] / 2 + largest * wide * case.plan.size.amax()
    assert (
        (merged.double() - wanted).abs() <= bound + torch.finfo(merged.dtype).smallest_normal * EPS[merged.dtype]
    ).all()


@given(cases(regimes=FINITE))
def test_a_precomputed_index_changes_no_bit(case):
    indexed = case.plan._replace(route=index_plan(case.plan, len(case.tokens)))
    merged = merge(case.tokens, case.plan)
    assert torch.equal(merge(case.tokens, indexed), merged)
    assert torch.equal(unmerge(merged, indexed), unmerge(merged, case.plan))


@given(cases(regimes=FINITE))
def test_index(case):
    index = index_plan(case.plan, len(case.tokens))
    slots = [slot for slot, _, _ in plans_of(case)]
    assert tuple(part.tolist() for part in index) == oracle.index(slots, case.plan.size.shape[1])
    assert {part.dtype for part in index} == {torch.int64}


@given(cases(regimes=FINITE, policy=policies(shared=st.just(True))))
def test_an_index_for_another_batch_is_not_used(case):
    indexed = case.plan._replace(route=index_plan(case.plan, len(case.tokens) + 1))
    assert torch.equal(merge(case.tokens, indexed), merge(case.tokens, case.plan))


@given(cases(regimes=["special"]))
def test_special_values_spoil_their_own_slot_only(case):
    merged = merge(case.tokens, case.plan)
    for sequence, result, (slot, size, _) in zip(case.tokens.tolist(), merged, plans_of(case), strict=True):
        spoiled = {number for token, number in zip(sequence, slot, strict=True) if not oracle.is_finite(token)}
        assert [bool(row.isfinite().all()) for row in result] == [number not in spoiled for number in range(len(size))]


@given(cases(regimes=EVERYTHING))
def test_unmerge_and_gather_anchors_are_gathers(case):
    merged = merge(case.tokens, case.plan)
    plans = plans_of(case)
    assert equal(
        unmerge(merged, case.plan), [oracle.unmerge(y, p[0]) for y, p in zip(merged.tolist(), plans, strict=True)]
    )
    anchored = gather_anchors(case.tokens, case.plan)
    assert equal(anchored, [oracle.gather_anchors(x, p[2]) for x, p in zip(case.tokens.tolist(), plans, strict=True)])


@given(cases())
def test_gather_anchors_of_rows_without_a_batch(case):
    rows = torch.arange(case.grid.tokens * 6.0).reshape(1, case.grid.tokens, 2, 3)
    expected = [oracle.gather_anchors(rows[0].tolist(), anchor) for anchor in case.plan.anchor.tolist()]
    assert equal(gather_anchors(rows, case.plan), expected)


@given(cases(), seeds, st.integers(1, 3), st.booleans())
def test_gather_anchors_along_any_dimension(case, seed, dim, single):
    shape = [1 if single else len(case.tokens), 2, 3, 4]
    shape[dim] = case.grid.tokens
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    for given_dim in (dim, dim - 4):
        gathered = gather_anchors(rows, case.plan, given_dim)
        assert len(gathered) == max(len(rows), len(case.plan.anchor))
        for sample, values in enumerate(gathered):
            anchor = case.plan.anchor[sample % len(case.plan.anchor)].tolist()
            expected = oracle.gather_anchors(list(rows[sample % len(rows)].unbind(dim - 1)), anchor)
            assert torch.equal(values, torch.stack(expected, dim - 1))


@given(cases(policies(shared=st.just(True))))
def test_gather_anchors_of_rows_without_a_batch_dimension(case):
    rows = torch.arange(case.grid.tokens * 2.0).reshape(-1, 2)
    assert equal(gather_anchors(rows, case.plan, 0), oracle.gather_anchors(rows.tolist(), case.plan.anchor[0].tolist()))


@given(cases(dtypes=(torch.float64,)), st.integers(0, 3), st.integers(0, 3), st.booleans(), st.booleans())
def test_extend(case, front, back, indexed, proportional):
    batch = len(case.tokens)
    plan = extend(case.plan._replace(route=index_plan(case.plan, batch) if indexed else None), front, back)
    expected = [oracle.extend(*rows, front, back) for rows in plans_of(case)]
    for part, wanted in zip(plan[:3], zip(*expected, strict=True), strict=True):
        assert part.dtype == torch.int64
        assert equal(part.expand(batch, -1), list(wanted))
    if indexed:
        slots = [slot for slot, _, _ in expected]
        assert tuple(part.tolist() for part in plan.route) == oracle.index(slots, plan.size.shape[1])
    tokens = torch.randn(batch, plan.slot.shape[1], 3, dtype=torch.float64)
    merged, bias = merge(tokens, plan), attention_bias(plan, dtype=torch.float64, proportional=proportional)
    restored, anchored = unmerge(merged, plan), gather_anchors(tokens, plan)
    for sample, (slot, size, anchor) in enumerate(expected):
        means = oracle.merge(tokens[sample].tolist(), slot, size)
        torch.testing.assert_close(merged[sample], tokens.new_tensor(means))
        torch.testing.assert_close(restored[sample], tokens.new_tensor(oracle.unmerge(means, slot)))
        assert anchored[sample].tolist() == oracle.gather_anchors(tokens[sample].tolist(), anchor)
        row = tokens.new_tensor(oracle.attention_bias(size, proportional=proportional))
        torch.testing.assert_close(bias[sample % len(bias), 0, 0], row)


@given(cases())
def test_a_clone_has_memory_of_its_own_and_no_index(case):
    indexed = case.plan._replace(route=index_plan(case.plan, len(case.tokens)))
    clone, moved = indexed.clone(), indexed.to("cpu")
    assert all(map(torch.equal, clone[:3], indexed[:3])) and clone.route is None
    assert not {part.data_ptr() for part in clone[:3]} & {part.data_ptr() for part in indexed[:3]}
    assert all(map(torch.equal, moved[:3] + moved.route, indexed[:3] + indexed.route))


@given(cases(), st.booleans(), st.sampled_from(DTYPES))
def test_attention_bias(case, proportional, dtype):
    bias = attention_bias(case.plan, dtype=dtype, proportional=proportional)
    expected = [[[oracle.attention_bias(size, proportional=proportional)]] for size in case.plan.size.tolist()]
    assert bias.dtype == dtype
    # Half an eps for the rounding to the dtype; the logarithm itself need not be better than float32.
    tolerance = EPS[dtype] / 2 + EPS[torch.float32]
    torch.testing.assert_close(bias.double(), torch.tensor(expected, dtype=torch.float64), rtol=tolerance, atol=0)


def test_the_bias_of_a_slot_too_large_for_half_precision():
    plan = MergePlan(*(torch.tensor([[number]]) for number in (0, 70_000, 0)))
    assert attention_bias(plan, dtype=torch.float16, proportional=True).item() == pytest.approx(log(70_000), rel=2**-11)


# ---------------------------------------------------------------- blocks


class Recorder(torch.nn.Module):
    """A block that is not linear, mixes its tokens, and shows the arguments it was given."""

    def forward(self, tokens: Tensor, scale: float, *, bias: Tensor | None = None) -> Tensor:
        self.seen, self.bias = tokens, bias
        return scale * tokens.square() + tokens.sum(1, keepdim=True)


@given(cases(), st.booleans(), st.booleans())
def test_merged_block(case, residual, proportional):
    block = MergedBlock(Recorder(), PairCache(case.policy), case.grid, residual, "bias", proportional)
    result = block(case.tokens, 3.0)
    slot, size, anchor, _ = case.policy(case.tokens, case.grid)
    # Without a capacity the block leaves padding out, and nothing else.
    slots = block.block.seen.shape[1]
    assert not size[:, slots:].any()
    plan = MergePlan(slot, size[:, :slots], anchor[:, :slots])
    merged = merge(case.tokens, plan)
    inner = Recorder()(merged, 3.0)
    expected = case.tokens + unmerge(inner - merged, plan) if residual else unmerge(inner, plan)
    assert torch.equal(result, expected)
    assert torch.equal(block.block.seen, merged)
    assert torch.equal(block.block.bias, attention_bias(plan, dtype=case.tokens.dtype, proportional=proportional))


def test_a_merged_block_that_merges_nothing_is_the_block():
    grid = TokenGrid((4, 5), prefix=1)
    tokens = make_tokens("normal", (2, 21, 4), torch.Generator().manual_seed(0)).float()
    everyone_alone = PairCache(AdaptiveMerge(threshold=1, spare="fill"))
    linear = torch.nn.Linear(4, 4)
    assert torch.allclose(MergedBlock(linear, everyone_alone, grid, residual=False)(tokens), linear(tokens))
    assert torch.equal(MergedBlock(torch.nn.Identity(), everyone_alone, grid)(tokens), tokens)


# ---------------------------------------------------------------- summaries


@given(cases(regimes=EVERYTHING))
def test_summary(case):
    summary = summarize(case.plan)
    sizes = case.plan.size.tolist()
    real = [sum(count > 0 for count in size) for size in sizes]
    assert (summary.tokens, summary.slots) == (case.grid.tokens, len(sizes[0]))
    assert (summary.real.tolist(), summary.largest.tolist()) == (real, [max(size) for size in sizes])
    fractions = [1 - count / case.grid.tokens for count in real]
    assert summary.merged_fraction.tolist() == pytest.approx(fractions, abs=2 * EPS[torch.float32])
    assert summary.real.dtype == summary.largest.dtype == torch.int64


@given(st.data(), cases())
def test_jaccard_distance(data, case):
    policy = data.draw(policies(st.just(case.policy.shared)))
    other = policy(case.tokens.flip(-1), case.grid)
    pairs = [
        [oracle.merged_pairs(*row) for row in zip(p.slot.tolist(), p.anchor.tolist(), strict=True)]
        for p in (case.plan, other)
    ]
    expected = [oracle.jaccard_distance(a, b) for a, b in zip(*pairs, strict=True)]
    assert jaccard_distance(case.plan, other).tolist() == pytest.approx(expected, abs=2 * EPS[torch.float32])
    assert (jaccard_distance(case.plan, case.plan) == 0).all()
