"""What a site remembers from step to step: its pairs, and what became of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from catome_adapters.report import SiteState
from catome_core import MergePlan, PairCache
from catome_core.cache import PlanKey
from catome_core.ladder import LADDER, choose_rung
from catome_core.planning import wanted_places


class SitePairs:
    """The pairs of one site, or segment, for one of the calls that a step makes of the network.

    Attributes:
        name: The site's, with the context.
        cache: The pairs.
        state: What the last step in which it ran made of them.
        seen: What it saw in this step; None if it did not run.
        merges: Whether it merged in this step.
        unmatched: Whether the output that was to be matched never came.
        overdue: Whether it sat a checkpoint out: its pairs are from before, so it recomputes when it runs again.
    """

    def __init__(self, name: str, cache: PairCache, metric: str) -> None:
        self.name, self.cache, self.metric = name, cache, metric
        self.reset()

    @property
    def ran(self) -> bool:
        """Whether the blocks were called in this step."""
        return self.seen is not None

    def reset(self) -> None:
        """Begin a new run: no plan, the policy's capacity, the seed's destinations."""
        self.forget()
        self.overdue = False
        self.cache.reset()
        self.state = SiteState.unknown(self.name)

    def forget(self) -> None:
        """Drop what a step leaves behind, also one that did not finish."""
        self.seen: PlanKey | None = None
        self.merges = self.unmatched = False

    def begin_step(self, checkpoint: bool) -> None:
        """Before a step that merges: recompute or reuse."""
        self.cache.refresh = checkpoint or self.overdue or not self.cache.filled

    def finish_step(self, merging: bool) -> bool:
        """After a step: note what the plan is, and whether it was recomputed in this step."""
        cache, key, merges = self.cache, self.seen, self.merges
        self.overdue = cache.refresh and (key is None or self.unmatched or merging > merges)
        self.forget()
        cache.settle()
        if key is None or (merges and not cache.filled):
            return False
        fresh = merges and (cache.refresh or key != self.state.key)
        self.state = self._describe(key, fresh, merges)
        return fresh

    def copy_plan(self) -> MergePlan:
        """The plan in use, in memory of its own."""
        plan = self.cache.plan()
        return MergePlan(plan.slot.clone(), plan.size.clone(), plan.anchor.clone())

    def _describe(self, key: PlanKey, fresh: bool, merges: bool) -> SiteState:
        if not merges:
            return _whole(self.name, key, torch.full((key.batch,), key.grid.sources))
        cache, wanted = self.cache, self.state.wanted
        if fresh:
            wanted = wanted_places(cache.match(), cache.policy.threshold)
        if fresh and self.metric == "output":
            return _whole(self.name, key, wanted)
        return SiteState(self.name, key, cache.policy.spare, cache.capacity, wanted)


def choose_rungs(fresh: Sequence[SitePairs]) -> None:
    """One capacity for all pairs of a grid, so that they share their graphs; one read from the device for all.

    The contexts of a step count together, as they would in one batch.
    """
    levels = defaultdict(list)
    demands = torch.stack([pairs.cache.demand() for pairs in fresh]).tolist()
    for pairs, demand in zip(fresh, demands, strict=True):
        levels[pairs.state.grid].append((pairs.cache, demand))
    for grid, members in levels.items():
        rung = choose_rung(LADDER, max(demand for _, demand in members), grid)
        for cache, _ in members:
            cache.use_capacity(rung)


def _whole(name: str, key: PlanKey, wanted: Tensor | None) -> SiteState:
    """A step that ran unmerged: every source kept its place."""
    return SiteState(name, key, "fill", None, wanted)
