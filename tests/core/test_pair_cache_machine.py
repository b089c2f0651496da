"""PairCache against a model that remembers what the stateless functions computed: come what may, no plan is stale."""

import copy

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import oracle
from catome_core import (
    AdaptiveMerge,
    MergePlan,
    PairCache,
    PlanKey,
    TokenGrid,
    choose_destinations,
    extend,
    fit_capacity,
    merge,
    unmerge,
)
from catome_core.planning import index_plan
from strategies import FINITE, capacities, make_tokens, radii, seeds, spares, thresholds
from tiers import tiered

# All of 12 tokens: the shape of the tokens does not tell them apart.
GRIDS = (
    TokenGrid((3, 4)),
    TokenGrid((2, 6)),
    TokenGrid((3, 4), stride=(3, 1)),
    TokenGrid((2, 5), prefix=2),
    TokenGrid((2, 2, 3)),
)
TOKEN_DTYPES = (torch.float32, torch.float64, torch.bfloat16)

ladders = st.sampled_from([(0, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4), (0.5, 0.25), (0,), ()])
regimes = st.sampled_from(FINITE)
cached_policies = st.builds(
    AdaptiveMerge, thresholds, capacities, radii, spares, st.booleans(), st.sampled_from(["top-left", "rotate"])
)


def some_tokens(seed: int, grid: TokenGrid, batch: int = 2, regime: str = "normal") -> Tensor:
    return make_tokens(regime, (batch, grid.tokens, 4), torch.Generator().manual_seed(seed)).float()


def same(actual: MergePlan, expected: MergePlan) -> bool:
    """The same plan, with the index that belongs to it."""
    index = index_plan(expected, len(actual.route.inverse) // actual.slot.shape[1])
    return all(map(torch.equal, actual[:3] + actual.route, expected[:3] + index))


class PairCacheMachine(RuleBasedStateMachine):
    """The next call comes with `batch`, `grid` and `dtype`; the stored plan is of the layout `reserved`."""

    @initialize(policy=cached_policies)
    def build(self, policy):
        self.policy, self.cache = policy, PairCache(policy)
        self.batch, self.grid, self.dtype = 2, GRIDS[0], torch.float32
        self.refresh, self.reserved = True, None
        self.forget()

    def forget(self):
        self.match = self.plan = None
        self.corner, self.capacity = 0, self.policy.capacity

    @property
    def layout(self):
        return self.batch, self.grid, self.dtype

    def recompute(self, tokens: Tensor):
        corner = self.corner if self.policy.destination == "rotate" else 0
        self.destinations = choose_destinations(self.grid, corner)
        self.match = self.policy.match(tokens, self.grid, self.destinations)
        self.plan = self.policy.plan(self.match, self.grid, self.capacity, self.destinations)

    def step(self, regime: str, seed: int):
        tokens = some_tokens(seed, self.grid, self.batch, regime).to(self.dtype)
        if self.reserved != self.layout:
            self.forget()
            self.reserved = self.layout
        if self.refresh or self.plan is None:
            self.recompute(tokens)
        assert same(self.cache(tokens, self.grid), self.plan)

    @rule(regime=regimes, seed=seeds)
    def checkpoint_step(self, regime, seed):
        self.cache.begin_step(True)
        self.refresh = True
        self.corner += self.plan is not None
        self.step(regime, seed)

    @rule(regime=regimes, seed=seeds)
    def reuse_step(self, regime, seed):
        self.cache.begin_step(False)
        self.refresh = False
        self.step(regime, seed)

    @rule(refresh=st.booleans(), regime=regimes, seed=seeds)
    def refresh_without_a_step(self, refresh, regime, seed):
        """The attribute has no side effect: destinations stay."""
        self.refresh = self.cache.refresh = refresh
        self.step(regime, seed)

    @rule(regime=regimes, seed=seeds)
    def step_as_before(self, regime, seed):
        self.step(regime, seed)

    @rule(batch=st.integers(1, 3))
    def other_batch(self, batch):
        self.batch = batch

    @rule(grid=st.sampled_from(GRIDS))
    def other_grid(self, grid):
        self.grid = grid

    @rule(dtype=st.sampled_from(TOKEN_DTYPES))
    def other_dtype(self, dtype):
        self.dtype = dtype

    @rule()
    def reset(self):
        self.cache.reset()
        self.refresh = True
        self.forget()

    @rule()
    def allocate(self):
        self.cache.allocate(self.batch, self.grid, dtype=self.dtype)
        self.forget()
        self.reserved = self.layout

    @precondition(lambda self: self.plan is not None)
    @rule(ladder=ladders)
    def fit(self, ladder):
        grid, demand = self.reserved[1], max(self.demands())
        rungs = [oracle.rung(grid, capacity) for capacity in ladder]
        self.capacity = min((rung for rung in rungs if rung >= demand), default=grid.sources) / grid.area
        self.plan = self.policy.plan(self.match, grid, self.capacity, self.destinations)
        assert self.cache.fit(ladder) == self.capacity
        assert self.cache.overflow().sum() == 0

    @precondition(lambda self: self.plan is None)
    @rule(ladder=ladders)
    def fit_too_early(self, ladder):
        with pytest.raises(RuntimeError, match="no plan; call it with tokens first"):
            self.cache.fit(ladder)

    def demands(self) -> list[int]:
        return [oracle.unmergeable(row, self.policy.threshold) for row in self.match.score.tolist()]

    @invariant()
    def flags_are_as_the_caller_left_them(self):
        assert self.cache.refresh == self.refresh
        assert self.cache.capacity == self.capacity
        assert self.cache.has_plan == (self.plan is not None)
        assert not self.cache.state_dict()

    @precondition(lambda self: self.reserved is not None)
    @invariant()
    def identity_is_known_in_advance(self):
        grid = self.reserved[1]
        merges_nothing = oracle.kept_slots(grid, self.capacity) == grid.sources
        assert self.cache.is_identity == (
            merges_nothing and (self.policy.threshold >= 1 or self.policy.spare == "fill")
        )
        if self.cache.is_identity and self.plan is not None:
            assert (self.plan.size == 1).all()
        for dtype in TOKEN_DTYPES:
            key = PlanKey(self.reserved[0], grid, torch.device("cpu"), dtype)
            reused = self.plan is not None and not self.refresh and dtype == self.reserved[2]
            assert self.cache.will_reuse(key) == reused

    @precondition(lambda self: self.plan is not None)
    @invariant()
    def demand_and_overflow_are_of_the_stored_match(self):
        limits = {"threshold": self.policy.threshold, "capacity": self.capacity}
        rows = self.match.score.tolist()
        assert self.cache.demand().tolist() == max(self.demands())
        assert self.cache.overflow().tolist() == [oracle.overflow(row, self.reserved[1], **limits) for row in rows]


TestPairCache = PairCacheMachine.TestCase


# ---------------------------------------------------------------- what a model of plans cannot see

GRID = TokenGrid((4, 6), prefix=1)


def checkpoint(cache: PairCache, seed: int) -> MergePlan:
    cache.begin_step(True)
    return cache(some_tokens(seed, GRID), GRID)


def test_random_destinations_follow_the_generator():
    policy = AdaptiveMerge(threshold=0.2, destination="random")
    caches = [PairCache(policy, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    of_grid = slice(GRID.prefix, GRID.prefix + GRID.destinations)
    drawn = [[checkpoint(cache, 0).anchor[0, of_grid].tolist() for _ in range(8)] for cache in caches]
    assert drawn[0] == drawn[1] != drawn[2]
    for anchors in drawn[0] + drawn[2]:
        assert [oracle.cell_of(anchor - GRID.prefix, GRID) for anchor in anchors] == oracle.cells(GRID)
    assert len(set(map(tuple, drawn[0]))) > 4, "the destinations hardly move from checkpoint to checkpoint"


def test_fit_keeps_the_random_destinations_of_the_stored_match():
    cache = PairCache(AdaptiveMerge(threshold=0.2, destination="random"), torch.Generator().manual_seed(3))
    before = cache(some_tokens(0, GRID), GRID).clone()
    real = int((before.size > 0).sum(-1).max())
    cache.fit([step / GRID.area for step in range(GRID.area)])
    cache.refresh = False
    after = cache(some_tokens(1, GRID), GRID)
    assert same(after, MergePlan(before.slot, before.size[:, :real], before.anchor[:, :real]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_the_model_does_not_round_the_stored_match(dtype):
    cache = PairCache(AdaptiveMerge(threshold=0.2))
    cache.allocate(2, GRID)
    cache.to(dtype)
    tokens = some_tokens(0, GRID)
    cache(tokens, GRID)
    assert torch.equal(cache.match().score, cache.policy.match(tokens, GRID).score)


def test_a_cache_that_was_built_without_memory_serves_once_it_has_some():
    with torch.device("meta"):
        cache = PairCache(AdaptiveMerge(threshold=0.2))
    cache.to_empty(device="cpu")
    tokens = some_tokens(0, GRID)
    assert same(cache(tokens, GRID), cache.policy(tokens, GRID))


def test_a_plan_made_in_inference_mode_serves_and_gives_way_outside_it():
    cache = PairCache(AdaptiveMerge(threshold=0.2))
    with torch.inference_mode():
        cache(some_tokens(0, GRID), GRID)
        cache.fit()
    cache.reset()
    tokens = some_tokens(1, GRID)
    assert same(cache(tokens, GRID), cache.policy(tokens, GRID))
    cache.fit()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("after", tiered(["begin_step", "call", "reset", "set_capacity", "fit"], ["call"]))
def test_memory_that_compiled_inference_mode_made_serves_and_gives_way_outside_it(after):
    cache = PairCache(AdaptiveMerge(threshold=0.2))
    compiled = torch.compile(cache, fullgraph=True, backend="eager")
    with torch.inference_mode():
        compiled(some_tokens(0, GRID), GRID)
    args = {"begin_step": [True], "set_capacity": [0.5]}
    if after != "call":
        getattr(cache, after)(*args.get(after, []))
    tokens = some_tokens(1, GRID)
    plan = (cache if after == "call" else compiled)(tokens, GRID)
    assert same(plan, cache.policy.plan(cache.policy.match(tokens, GRID), GRID, cache.capacity))


def test_planning_takes_no_part_in_the_graph_of_gradients():
    tokens = some_tokens(0, GRID).requires_grad_()
    cache = PairCache(AdaptiveMerge(threshold=0.2))
    cache(tokens, GRID)
    assert not any(buffer.requires_grad for buffer in cache.buffers())


@pytest.mark.parametrize("destination", ["top-left", "rotate", "random"])
def test_the_buffers_stay_where_they_are(destination):
    """CUDA graphs need static memory: neither a checkpoint, nor a fit, nor a reset moves it."""
    cache = PairCache(AdaptiveMerge(threshold=0.2, destination=destination), torch.Generator())
    cache.allocate(2, GRID)
    addresses = [buffer.data_ptr() for buffer in cache.buffers()]
    for seed in range(2):
        cache(some_tokens(seed, GRID), GRID)
        cache.fit()
        cache.begin_step(not cache.refresh)
    cache.reset()
    cache(some_tokens(2, GRID), GRID)
    assert [buffer.data_ptr() for buffer in cache.buffers()] == addresses


@pytest.mark.parametrize("destination", tiered(["top-left", "rotate", "random"], ["rotate"]))
def test_compiled_there_are_two_graphs_and_the_same_plans(destination):
    torch.compiler.reset()
    counter = CompileCounter()
    policy = AdaptiveMerge(threshold=0.2, destination=destination)
    eager, cache = (PairCache(policy, torch.Generator().manual_seed(0)) for _ in range(2))
    cache.allocate(2, GRID)
    compiled = torch.compile(cache, fullgraph=True, backend=counter)
    for seed, refresh in enumerate([True, False, True, True, False, False]):
        for one in (eager, cache):
            one.begin_step(refresh)
        assert same(compiled(some_tokens(seed, GRID), GRID), eager(some_tokens(seed, GRID), GRID))
    assert counter.frame_count == 2


def test_one_capacity_serves_all_caches_of_a_grid():
    """That of the neediest; other grids have their own."""
    other = TokenGrid((8, 8))
    caches = [PairCache(AdaptiveMerge(threshold)) for threshold in (-0.5, 0.2, 0.9, 0.5)]
    for seed, (cache, grid) in enumerate(zip(caches, (GRID, GRID, other, GRID), strict=True)):
        cache(some_tokens(seed, grid, regime="clusters"), grid)
    ladder = (0, 1 / 8, 1 / 4, 1 / 2)
    alone = {
        grid: max(copy.deepcopy(cache).fit(ladder) for cache in caches if cache.key.grid == grid)
        for grid in (GRID, other)
    }
    assert fit_capacity(caches, ladder) == alone
    for cache in caches:
        assert cache.capacity == alone[cache.key.grid] and cache.overflow().sum() == 0
        assert same(cache.plan(), cache.policy.plan(cache.match(), cache.key.grid, cache.capacity))


def test_fitting_nothing_reads_nothing():
    assert fit_capacity([]) == {}


def test_fitting_reads_the_device_once(monkeypatch):
    caches = [PairCache(AdaptiveMerge(0.2)) for _ in range(3)]
    for seed, cache in enumerate(caches):
        cache(some_tokens(seed, GRID), GRID)
    reads = []
    for name in ("tolist", "item", "__int__", "__float__", "__bool__", "cpu", "numpy"):
        read = getattr(Tensor, name)
        monkeypatch.setattr(
            Tensor, name, lambda self, *args, read=read, name=name: (reads.append(name), read(self, *args))[1]
        )
    fit_capacity(caches)
    monkeypatch.undo()
    assert reads == ["tolist"]


def test_a_wrong_number_of_tokens_is_noticed_at_a_reuse_step():
    cache = PairCache(AdaptiveMerge(0.2))
    cache(some_tokens(0, GRID), GRID)
    cache.begin_step(False)
    with pytest.raises(ValueError, match="pass the grid of these tokens"):
        cache(some_tokens(0, GRID)[:, 1:], GRID)


def test_setting_refresh_moves_no_destination():
    cache = PairCache(AdaptiveMerge(0.2, destination="rotate"))
    first = cache(some_tokens(0, GRID), GRID).clone()
    cache.refresh = True
    assert same(cache(some_tokens(0, GRID), GRID), first)
    cache.begin_step(True)
    assert not torch.equal(cache(some_tokens(0, GRID), GRID).anchor, first.anchor)


@pytest.mark.parametrize("shared", tiered([False, True], [True]))
def test_an_extended_plan_of_the_cache_compiles_to_the_same_two_graphs(shared):
    torch.compiler.reset()
    counter = CompileCounter()
    cache = PairCache(AdaptiveMerge(threshold=0.2, shared=shared))
    cache.allocate(2, GRID)

    def run(tokens: Tensor) -> tuple[Tensor, Tensor]:
        plan = extend(cache(tokens[:, 3:-1], GRID), front=3, back=1)
        merged = merge(tokens, plan)
        return merged, unmerge(merged, plan)

    compiled = torch.compile(run, fullgraph=True, backend=counter)
    for seed, refresh in enumerate([True, False, True, False]):
        cache.begin_step(refresh)
        tokens = make_tokens("normal", (2, GRID.tokens + 4, 4), torch.Generator().manual_seed(seed)).float()
        for one, other in zip(compiled(tokens), run(tokens), strict=True):
            assert torch.equal(one, other)
    assert counter.frame_count == 2
