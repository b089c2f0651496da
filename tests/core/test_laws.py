"""The twelve laws of token merging, one property test each (the design numbers them the same way), and extension's."""

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from catome_core import (
    AdaptiveMerge,
    PairCache,
    attention_bias,
    count_overflow,
    extend,
    gather_anchors,
    merge,
    plan_merge,
    unmerge,
)
from catome_core.planning import index_plan
from strategies import (
    DTYPES,
    FINITE,
    Case,
    cases,
    destinations_at,
    policies,
    seeds,
    thresholds,
    token_grids,
    tokens_for,
)

# Rounding to nearest is wrong by at most half an eps of the result.
HALF_ULP = {dtype: torch.finfo(dtype).eps / 2 for dtype in DTYPES}
# Half precision adds up in float32, and below the normal numbers eps is no measure: there the spacing is constant.
ACCUMULATED = {dtype: min(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps) for dtype in DTYPES}
SMALLEST = {dtype: torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps for dtype in DTYPES}

one_plan_each = policies(shared=st.just(False))


def random_slots(case: Case, seed: int) -> Tensor:
    """Any values on the slots of a case, those of its padding included."""
    shape = (len(case.tokens), case.plan.size.shape[1], case.tokens.shape[2])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(case.tokens.dtype)


def padding(case: Case) -> Tensor:
    """bool (batch, slots, 1)"""
    return (case.plan.size == 0)[..., None].expand(len(case.tokens), -1, 1)


def merged_scores(case: Case) -> tuple[Tensor, Tensor]:
    """Scores of the merged sources (+inf elsewhere) and of the kept ones (-inf elsewhere), both (batch, sources)."""
    first_kept = case.grid.prefix + case.grid.destinations
    home = torch.zeros(case.grid.tokens, dtype=torch.bool)
    home[case.plan.anchor[0, :first_kept]] = True
    merged = case.plan.slot[:, ~home] < first_kept
    return case.match.score.where(merged, torch.inf), case.match.score.where(~merged, -torch.inf)


@given(cases(regimes=[*FINITE, "special"]))
def test_law_01_every_token_has_exactly_one_slot(case):
    slot, size, anchor, _ = case.plan
    assert slot.shape[1] == case.grid.tokens
    counted = torch.stack([row.bincount(minlength=size.shape[1]) for row in slot])
    assert torch.equal(counted, size)
    assert (size.sum(-1) == case.grid.tokens).all()
    anchored = slot.gather(1, anchor)
    assert torch.equal(anchored[size > 0], torch.arange(size.shape[1]).expand_as(size)[size > 0])


@given(cases())
def test_law_02_mass_is_conserved(case):
    merged = merge(case.tokens, case.plan).double()
    mass, total = (case.plan.size[..., None] * merged).sum(1), case.tokens.double().sum(1)
    # A mean is rounded once to the dtype, and once in the accumulator for every token in it.
    factor = HALF_ULP[case.tokens.dtype] + case.grid.tokens * ACCUMULATED[case.tokens.dtype]
    bound = factor * case.tokens.double().abs().sum(1) + case.grid.tokens * SMALLEST[case.tokens.dtype]
    assert ((mass - total).abs() <= bound).all()


@given(cases(), seeds)
def test_law_03_merge_undoes_unmerge(case, seed):
    slots = random_slots(case, seed)
    again = merge(unmerge(slots, case.plan), case.plan)
    # A mean of equal numbers: one rounding per addition in the accumulator, one to the dtype.
    factor = HALF_ULP[slots.dtype] + case.grid.tokens * ACCUMULATED[slots.dtype]
    close = (again.double() - slots.double()).abs() <= factor * slots.double().abs() + SMALLEST[slots.dtype]
    assert (close | padding(case)).all()
    once = unmerge(merge(case.tokens, case.plan), case.plan)
    twice = unmerge(merge(once, case.plan), case.plan)
    assert ((twice.double() - once.double()).abs() <= factor * once.double().abs() + SMALLEST[slots.dtype]).all()


@given(cases(dtypes=[torch.float64, torch.float32]), seeds)
def test_law_04_weighted_merge_is_the_adjoint_of_unmerge(case, seed):
    slots = random_slots(case, seed)
    left = (case.plan.size[..., None] * merge(case.tokens, case.plan) * slots).double().sum()
    products = case.tokens.double() * unmerge(slots, case.plan).double()
    # As for mass, and two roundings of the products.
    factor = (case.grid.tokens + 3) * torch.finfo(case.tokens.dtype).eps
    assert (left - products.sum()).abs() <= factor * case.tokens.double().abs().sum() * slots.abs().max()


@given(cases(policies(capacity=st.none())), st.sampled_from([1.0, 1.5, float("inf")]))
def test_law_05_threshold_one_is_the_identity(case, threshold):
    policy = AdaptiveMerge(threshold, None, case.policy.radius, case.policy.spare, case.policy.shared)
    plan = policy(case.tokens, case.grid, destinations_at(case.grid, case.offsets))
    assert (plan.size == 1).all()
    assert torch.equal(unmerge(merge(case.tokens, plan), plan), case.tokens)


@given(cases(regimes=[*FINITE, "special"]), st.data())
def test_law_06_nothing_below_the_threshold_merges_but_by_overflow(case, data):
    # Any pair may lie exactly at the threshold.
    threshold = data.draw(st.sampled_from([case.policy.threshold, *case.match.score.flatten().tolist()]))
    destinations = destinations_at(case.grid, case.offsets)
    plan = plan_merge(case.match, case.grid, **{**case.rule, "threshold": threshold}, destinations=destinations)
    overflow = count_overflow(case.match, case.grid, threshold=threshold, capacity=case.policy.capacity)
    merged, kept = merged_scores(case._replace(plan=plan))
    assert torch.equal((merged <= threshold).sum(-1), overflow)
    if case.match.score.numel():
        assert (merged.amin(-1) >= kept.amax(-1)).all(), "a kept source is more similar than a merged one"
    if case.policy.spare == "pad":
        assert not (kept > threshold).any()


@given(st.data(), token_grids(), one_plan_each, st.permutations(range(3)))
def test_law_07_a_plan_does_not_depend_on_batch_mates(data, grid, policy, order):
    # Exact cosines: another batch may sum in another order, which must not matter.
    tokens = data.draw(tokens_for(grid, regimes=["exact"], batches=st.just(3)))
    together = policy(tokens, grid)
    reordered = policy(tokens[order], grid)
    alone = [policy(sample[None], grid) for sample in tokens]
    for whole, moved, single in zip(
        together[:3], reordered[:3], zip(*(plan[:3] for plan in alone), strict=True), strict=True
    ):
        assert torch.equal(whole[order], moved)
        assert torch.equal(whole, torch.cat(single))


@given(cases(), thresholds)
def test_law_08_a_higher_threshold_never_has_fewer_slots(case, other):
    low, high = sorted([case.policy.threshold, other])
    real = [
        (plan_merge(case.match, case.grid, **{**case.rule, "threshold": threshold}).size > 0).sum(-1)
        for threshold in (low, high)
    ]
    assert (real[0] <= real[1]).all()


@given(cases(), seeds, st.booleans())
def test_law_09_padding_is_zero_and_without_effect(case, seed, proportional):
    merged = merge(case.tokens, case.plan)
    assert (merged.where(padding(case), 0) == 0).all()
    spoiled = torch.where(padding(case), torch.nan, merged)
    assert torch.equal(unmerge(spoiled, case.plan), unmerge(merged, case.plan))

    bias = attention_bias(case.plan, dtype=torch.float32, proportional=proportional).expand(len(merged), -1, -1, -1)
    soiled = torch.where(padding(case), random_slots(case, seed), merged)
    query, *keys = (values.float()[:, None] for values in (merged, merged, soiled))
    # The weight of padding is exactly zero: nothing else may change by a single bit.
    assert torch.equal(*(scaled_dot_product_attention(query, key, key, bias) for key in keys))


@given(cases(regimes=[*FINITE, "special"]))
def test_law_10_prefix_tokens_are_never_merged_and_never_moved(case):
    prefix, count = torch.arange(case.grid.prefix), case.grid.prefix
    for of_prefix in (case.plan.slot[:, :count], case.plan.anchor[:, :count]):
        assert torch.equal(of_prefix, prefix.expand_as(of_prefix))
    assert (case.plan.size[:, :count] == 1).all()
    assert (case.plan.slot[:, count:] >= count).all()
    merged = merge(case.tokens, case.plan)
    for values in (merged, unmerge(merged, case.plan), gather_anchors(case.tokens, case.plan)):
        assert torch.equal(values[:, :count].nan_to_num(), case.tokens[:, :count].nan_to_num())


@settings(max_examples=5, phases=[Phase.explicit, Phase.generate])  # every example compiles: few, and no shrinking
@given(st.data(), token_grids(), policies(), st.booleans())
def test_law_11_reuse_is_recompute_and_eager_is_compiled(data, grid, policy, refresh):
    tokens = data.draw(tokens_for(grid, regimes=["exact"]))
    stateless, cache = policy(tokens, grid), PairCache(policy)
    cache(tokens, grid)
    cache.refresh = refresh

    def step(values: Tensor) -> tuple[Tensor, ...]:
        plan = cache(values, grid)
        bias, rows, merged = attention_bias(plan, dtype=values.dtype), gather_anchors(values, plan), merge(values, plan)
        return *plan[:3], bias, rows, merged, unmerge(merged, plan)

    eager = [value.clone() for value in step(tokens)]
    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(tokens)
    for expected, actual in zip(stateless[:3], eager, strict=False):
        assert torch.equal(expected, actual)
    # The same operations in the same order: not even a rounding differs.
    for expected, actual in zip(eager, compiled, strict=True):
        assert torch.equal(expected, actual)


@given(cases(regimes=[*FINITE, "special"]))
def test_law_12_kept_tokens_come_back_bit_exact(case):
    merged = merge(case.tokens, case.plan)
    back = unmerge(merged, case.plan)
    slot = case.plan.slot.expand(len(case.tokens), -1)
    size = case.plan.size.expand(len(case.tokens), -1)
    alone = size.gather(1, slot) == 1
    assert torch.equal(back[alone].nan_to_num(), case.tokens[alone].nan_to_num())
    for sample, (values, slots) in enumerate(zip(back, slot, strict=True)):
        assert torch.equal(values.nan_to_num(), merged[sample, slots].nan_to_num())


# ---------------------------------------------------------------- longer sequences

few = st.integers(0, 3)


def around(front: Tensor, rows: Tensor, back: Tensor) -> Tensor:
    """Along dimension 1, in memory of float64 or as it is; NaN made comparable."""
    return torch.cat([front, rows, back], 1).nan_to_num()


@given(cases(regimes=[*FINITE, "special"]), few, few, st.booleans(), seeds)
def test_an_extended_plan_is_the_inner_plan_with_the_other_tokens_around(case, front, back, indexed, seed):
    plan = case.plan._replace(route=index_plan(case.plan, len(case.tokens)) if indexed else None)
    longer = extend(plan, front, back)
    others = torch.randn(
        len(case.tokens), front + back, case.tokens.shape[2], generator=torch.Generator().manual_seed(seed)
    )
    first, last = others.to(case.tokens.dtype).split([front, back], 1)
    tokens = torch.cat([first, case.tokens, last], 1)
    merged, inner = merge(tokens, longer), merge(case.tokens, plan)
    # The same sums in the same order: not even a rounding differs.
    assert torch.equal(merged.nan_to_num(), around(first, inner, last))
    assert torch.equal(unmerge(merged, longer).nan_to_num(), around(first, unmerge(inner, plan), last))
    assert torch.equal(
        gather_anchors(tokens, longer).nan_to_num(), around(first, gather_anchors(case.tokens, plan), last)
    )
    for proportional in (False, True):
        biases = [attention_bias(one, dtype=torch.float32, proportional=proportional) for one in (plan, longer)]
        assert torch.equal(torch.nn.functional.pad(biases[0], (front, back)), biases[1])


@given(cases(), few, few)
def test_an_extended_index_is_the_index_of_the_extended_plan(case, front, back):
    """For its own batch, which is larger than that of a shared plan, and without a sort."""
    plan = case.plan._replace(route=index_plan(case.plan, len(case.tokens)))
    longer = extend(plan, front, back)
    assert all(map(torch.equal, longer.route, index_plan(longer, len(case.tokens))))
    assert extend(case.plan, front, back).route is None


@given(cases())
def test_extension_by_nothing_is_the_plan_itself(case):
    assert extend(case.plan) is case.plan


@given(cases(), few, few, few, few)
def test_extensions_add_up(case, front, back, more_front, more_back):
    plan = case.plan._replace(route=index_plan(case.plan, len(case.tokens)))
    twice = extend(extend(plan, front, back), more_front, more_back)
    once = extend(plan, front + more_front, back + more_back)
    assert all(map(torch.equal, twice[:3] + twice.route, once[:3] + once.route))


@given(cases(), few, few)
def test_an_extended_plan_keeps_the_laws_of_a_plan(case, front, back):
    slot, size, anchor, _ = longer = extend(case.plan, front, back)
    assert slot.shape[1] == case.grid.tokens + front + back
    assert torch.equal(torch.stack([row.bincount(minlength=size.shape[1]) for row in slot]), size)
    assert torch.equal(slot.gather(1, anchor)[size > 0], torch.arange(size.shape[1]).expand_as(size)[size > 0])
    outside = torch.cat([longer.size[:, :front], longer.size[:, size.shape[1] - back :]], 1)
    assert (outside == 1).all()
