"""Every documented error names the value that is wrong and what to do about it."""

from collections.abc import Callable

import pytest
import torch
from torch import nn, zeros

from catome_core import (
    AdaptiveMerge,
    CheckpointSchedule,
    Match,
    MergedBlock,
    PairCache,
    TokenGrid,
    choose_destinations,
    count_overflow,
    dither_offsets,
    gather_anchors,
    jaccard_distance,
    lattice_plan,
    match_tokens,
    merge,
    plan_merge,
    unmerge,
)

NAN = float("nan")
NEW_PLAN, OWN_GRID, CAPACITIES = "make a plan for these tokens", "pass the grid of these tokens", "from 0 to 1.*None"
GRID = TokenGrid((4, 4), prefix=1)
FULL = AdaptiveMerge(threshold=0.5)
FILL = AdaptiveMerge(threshold=0.5, capacity=0.25, spare="fill")
PLAN = FULL(torch.arange(2 * 17 * 3.0).reshape(2, 17, 3), GRID)
SHARED = AdaptiveMerge(threshold=0.5, shared=True)(torch.arange(2 * 17 * 3.0).reshape(2, 17, 3), GRID)
PLAN_OF_3 = FULL(torch.ones(3, 17, 3), GRID)
OTHER_PLAN = FULL(torch.ones(2, 16, 3), TokenGrid((4, 4)))


def plan(**changes):
    return plan_merge(Match(zeros(1, 12), zeros(1, 12, dtype=torch.int64)), GRID, **{"threshold": 0.5, **changes})


def overflow(**changes):
    return count_overflow(Match(zeros(1, 12), zeros(1, 12, dtype=torch.int64)), GRID, **{"threshold": 0.5, **changes})


class Tuple(nn.Module):
    def forward(self, tokens):
        return (tokens,)


def masked_block():
    return MergedBlock(nn.Linear(3, 3), PairCache(FULL), GRID, mask_argument="attn_mask")


# What is called, the offending value, the remedy; both as regular expressions.
ERRORS: dict[str, tuple[Callable[[], object], str, str]] = {
    "shape 1-D": (lambda: TokenGrid((4,)), r"\(4,\)", r"\(height, width\)"),
    "shape 4-D": (lambda: TokenGrid((1, 2, 3, 4)), r"\(1, 2, 3, 4\)", r"\(frames, height, width\)"),
    "shape with zero": (lambda: TokenGrid((0, 4)), r"\(0, 4\)", "positive"),
    "stride zero": (lambda: TokenGrid((4, 4), stride=0), "stride is 0", "positive"),
    "strides for other dimensions": (
        lambda: TokenGrid((4, 4), stride=(1, 2, 2)),
        r"\(1, 2, 2\)",
        "one for each dimension",
    ),
    "prefix negative": (lambda: TokenGrid((4, 4), prefix=-1), "prefix is -1", "0 or the number of tokens"),
    "tokens without batch": (lambda: match_tokens(zeros(17, 3), GRID), r"\(17, 3\)", r"\(batch, tokens, channels\)"),
    "tokens of integers": (lambda: match_tokens(zeros(1, 17, 3).long(), GRID), "int64", "float"),
    "tokens of another grid": (lambda: match_tokens(zeros(1, 16, 3), GRID), "16.*17", OWN_GRID),
    "tokens of another grid, policy": (lambda: FULL(zeros(1, 18, 3), GRID), "18.*17", OWN_GRID),
    "tokens of another grid, cache": (lambda: PairCache(FULL)(zeros(1, 18, 3), GRID), "18.*17", OWN_GRID),
    "threshold NaN": (lambda: plan(threshold=NAN), "threshold is nan", "cosine similarity"),
    "capacity negative": (lambda: plan(capacity=-0.1), "capacity is -0.1", CAPACITIES),
    "capacity above one": (lambda: plan(capacity=1.5), "capacity is 1.5", CAPACITIES),
    "capacity NaN": (lambda: plan(capacity=NAN), "capacity is nan", CAPACITIES),
    "capacity negative, overflow": (lambda: overflow(capacity=-3), "capacity is -3", CAPACITIES),
    "threshold NaN, overflow": (lambda: overflow(threshold=NAN), "threshold is nan", "cosine similarity"),
    "spare unknown": (lambda: plan(spare="drop"), "'drop'", "'pad'.*'fill'"),
    "match of another grid": (
        lambda: plan_merge(Match(zeros(1, 11), zeros(1, 11).long()), GRID, threshold=0.5),
        "11.*12",
        "the same grid",
    ),
    "merge other tokens": (lambda: merge(zeros(2, 16, 3), PLAN), "16.*17", NEW_PLAN),
    "merge another batch": (lambda: merge(zeros(3, 17, 3), PLAN), r"\(3, 17, 3\).*batch 2", NEW_PLAN),
    "unmerge other slots": (lambda: unmerge(zeros(2, 18, 3), PLAN), "18.*17", NEW_PLAN),
    "unmerge another batch": (lambda: unmerge(zeros(1, 17, 3), PLAN), r"\(1, 17, 3\).*batch 2", NEW_PLAN),
    "merge heads": (lambda: merge(zeros(2, 17, 2, 3), PLAN), r"\(2, 17, 2, 3\)", r"\(batch, 17, channels\)"),
    "merge integers": (lambda: merge(zeros(2, 17, 3).long(), PLAN), "int64", r"tokens\.float"),
    "unmerge without channels": (lambda: unmerge(zeros(2, 17), PLAN), r"\(2, 17\)", r"\(batch, 17, channels\)"),
    "unmerge heads": (lambda: unmerge(zeros(2, 17, 2, 3), PLAN), r"\(2, 17, 2, 3\)", "flatten heads"),
    "offsets of another grid": (lambda: choose_destinations(GRID, zeros(3).long()), r"\(3,\)", r"\(4,\)"),
    "offsets of floats": (lambda: choose_destinations(GRID, zeros(4)), "float32", "whole number, or one for each cell"),
    "offset of a float": (lambda: lattice_plan(GRID, 0.5), "offsets is 0.5", "whole number, or one for each cell"),
    "step of a lattice": (lambda: dither_offsets(GRID, 0.5), "step is 0.5", "number of a step"),
    "block that returns a tuple": (
        lambda: MergedBlock(Tuple(), PairCache(FILL), GRID)(zeros(1, 17, 3)),
        "Tuple returned tuple",
        r"tensor \(batch, 9, channels\).*the tokens alone",
    ),
    "gather other rows": (lambda: gather_anchors(zeros(2, 18, 3), PLAN), "18.*17", NEW_PLAN),
    "gather other shared rows": (lambda: gather_anchors(zeros(1, 18, 3), PLAN), "18.*17", NEW_PLAN),
    "gather another batch": (lambda: gather_anchors(zeros(3, 17, 3), PLAN), r"\(3, 17, 3\).*batch 2", NEW_PLAN),
    "gather along another dimension": (
        lambda: gather_anchors(zeros(2, 3, 18), PLAN, dim=2),
        r"\(2, 3, 18\).*dimension 2.*17 tokens",
        NEW_PLAN,
    ),
    "gather along no dimension": (lambda: gather_anchors(zeros(17), SHARED, dim=1), r"\(17,\).*17 tokens", NEW_PLAN),
    "gather without a batch": (
        lambda: gather_anchors(zeros(17, 3), PLAN, dim=0),
        r"\(17, 3\).*2 samples",
        "shared=True.*batch dimension",
    ),
    "policy threshold": (lambda: AdaptiveMerge(threshold=NAN), "threshold is nan", "cosine similarity"),
    "policy capacity": (lambda: AdaptiveMerge(capacity=2), "capacity is 2", CAPACITIES),
    "policy radius": (lambda: AdaptiveMerge(radius=-1), "radius is -1", "0 .own cell.*None"),
    "policy spare": (lambda: AdaptiveMerge(spare="drop"), "'drop'", "'pad'.*'fill'"),
    "policy destination": (lambda: AdaptiveMerge(destination="center"), "'center'", "'top-left', 'random', 'rotate'"),
    "policy without the state it needs": (
        lambda: AdaptiveMerge(destination="rotate")(zeros(1, 17, 3), GRID),
        "'rotate'",
        "destinations=.*PairCache",
    ),
    "random without generator": (
        lambda: PairCache(AdaptiveMerge(destination="random")),
        "'random'",
        r"generator=torch\.Generator",
    ),
    "padding without attention that can be intercepted": (
        lambda: MergedBlock(nn.Linear(3, 3), PairCache(FULL), GRID)(zeros(1, 17, 3)),
        "Linear.*17 keys.*spare='pad'",
        "mask_argument.*spare='fill'",
    ),
    "proportional without attention that can be intercepted": (
        lambda: MergedBlock(nn.Linear(3, 3), PairCache(FILL), GRID, proportional=True)(zeros(1, 17, 3)),
        "Linear.*9 keys.*proportional=True",
        "mask_argument.*proportional=False",
    ),
    "two masks": (lambda: masked_block()(zeros(1, 17, 3), attn_mask=zeros(17)), "attn_mask was passed", "leave it out"),
    "plans of different layers": (lambda: jaccard_distance(PLAN, OTHER_PLAN), "17 and 16", "of one layer"),
    "plans of different batches": (lambda: jaccard_distance(PLAN, PLAN_OF_3), "2 and 3 samples", "of one layer"),
    "step after the run": (lambda: CheckpointSchedule((0, 50), of=50), r"\[50\]", "0 to 49"),
    "step before the run": (lambda: CheckpointSchedule((-1, 3), of=50), r"\[-1\]", "0 to 49"),
    "run without steps": (lambda: CheckpointSchedule((), of=0), "of is 0", "the number of denoising steps"),
    "interval zero": (lambda: CheckpointSchedule.every(0, 50), "interval is 0", "at least 1"),
    "fraction one": (lambda: CheckpointSchedule.fractions(0.5, 1.0), r"\(0\.5, 1\.0\)", "below 1"),
    "rescaled to nothing": (lambda: CheckpointSchedule((0,), of=50).rescaled(0), "total is 0", "at least 1"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_names_the_value_and_the_remedy(name):
    call, value, remedy = ERRORS[name]
    with pytest.raises((ValueError, TypeError), match=value) as error:
        call()
    error.match(remedy)


@pytest.mark.parametrize("name", ["fit", "plan", "demand", "overflow", "set_capacity"])
@pytest.mark.parametrize("before", ["first call", "call after reset", "call after allocate"])
def test_a_cache_without_a_plan_says_so(name, before):
    cache = PairCache(FULL)
    if before != "first call":
        cache(zeros(2, 17, 3), GRID)
        cache.reset() if "reset" in before else cache.allocate(2, GRID)
    with pytest.raises(RuntimeError, match="no plan; call it with tokens first"):
        getattr(cache, name)(*([0.5] if name == "set_capacity" else []))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("set_capacity", value) for value in (2.0, -0.5, "0.5", NAN, True)),
        *(("fit", value) for value in (0.5, (25, 50), ("a",), (-1,), (NAN,))),
    ],
)
def test_a_refused_capacity_changes_nothing(name, value):
    """All of them are refused, rung by rung too, before anything is rebuilt."""
    cache = PairCache(FULL)
    before, tokens = cache(zeros(2, 17, 3), GRID).clone(), torch.ones(2, 17, 3)
    with pytest.raises((TypeError, ValueError), match=r"(capacity|ladder) is .*from 0 to 1"):
        getattr(cache, name)(value)
    cache.refresh = False
    assert cache.capacity is None
    assert all(map(torch.equal, cache(tokens, GRID)[:3], before[:3]))


def test_a_plan_without_padding_needs_no_mask():
    block = MergedBlock(nn.Identity(), PairCache(FILL), GRID)
    assert block(zeros(2, 17, 3)).shape == (2, 17, 3)


def test_a_plan_without_kept_slots_still_needs_a_mask():
    """`fit` may give it kept slots, and with them padding."""
    block = MergedBlock(nn.Identity(), PairCache(AdaptiveMerge(capacity=0)), GRID)
    with pytest.raises(ValueError, match="Identity did not call scaled_dot_product_attention"):
        block(zeros(2, 17, 3))
