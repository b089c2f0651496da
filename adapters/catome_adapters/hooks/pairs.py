"""What a segment remembers from step to step: its pairs, for each of the calls that a step makes of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from torch import Tensor

from catome_adapters.hooks.forward import ForwardState
from catome_adapters.hooks.memory import SiteMemory
from catome_adapters.records import SitePlan, quartiles
from catome_core import MergePlan, PairCache, PlanKey, TokenGrid, count_unmergeable

MAX_CALLS_PER_STEP = 4
"""Guidance makes up to four calls of the network in a step; pairs for all tiles of a panorama would fill the memory."""


class SitePairs(SiteMemory):
    """The pairs of one site, or segment, for one of the calls that a step makes of the network.

    Attributes:
        cache: The pairs.
        always_due: Whether every step recomputes, since several calls of a step share these pairs.
        due: Whether the pairs are to be recomputed; a checkpoint stays due until it has run.
    """

    def __init__(self, name: str, cache: PairCache, matches_output: bool, always_due: bool = False) -> None:
        self.cache, self.matches_output, self.always_due = cache, matches_output, always_due
        super().__init__(name)

    def reset(self) -> None:
        """Begin a new run: no plan, the policy's capacity, the seed's destinations."""
        super().reset()
        self.due = False
        self.cache.reset()

    def waits_for_output(self, key: PlanKey) -> bool:
        """Whether such tokens have to run unmerged first, since what the scope makes of them is matched."""
        return self.matches_output and not self.cache.will_reuse(key)

    def plan_for(self, tokens: Tensor, grid: TokenGrid) -> MergePlan | None:
        """The plan of this step."""
        plan = self.cache(tokens, grid)
        return None if self.cache.is_identity else plan

    def begin_step(self, checkpoint: bool) -> None:
        """Before a step that merges: recompute or reuse."""
        self.due = self.due or checkpoint or self.always_due or not self.cache.has_plan
        self.cache.begin_step(self.due)

    def finish_step(self) -> bool:
        """After a step in which it ran: note what the plan is, and whether it was recomputed in this step."""
        self.due = self.due and (self.output_missed or not self.merged)
        return super().finish_step()

    def own_memory(self) -> None:
        """Move the pairs to memory of their own, if a compiled call has lent them some."""
        self.cache.own_memory()

    def plan_in_use(self) -> MergePlan | None:
        """The plan that the next call may reuse."""
        return self.cache.plan() if self.cache.has_plan and not self.always_due else None

    @property
    def nbytes(self) -> int:
        """Bytes that the pairs hold between steps."""
        return sum(buffer.nbytes for buffer in self.cache.buffers())

    @property
    def is_fresh(self) -> bool:
        """Whether the pairs were recomputed in this step."""
        return self.merged and self.cache.has_plan and (self.cache.refresh or self.key != self.plan.key)

    def current_plan(self) -> SitePlan:
        """What this step has made of the pairs so far; changes nothing."""
        key, cache = self.key, self.cache
        if key is None or (self.merged and not cache.has_plan):
            return self.plan
        if not self.merged:
            return self.left_unmerged(key)
        found = (self.plan.unmergeable, self.plan.similarity)
        if self.is_fresh:
            match = cache.match()
            found = (count_unmergeable(match, cache.policy.threshold), quartiles(match.score))
        if self.is_fresh and self.matches_output:
            # The output came when the step's own tokens had run.
            return SitePlan(self.name, key, "fill", None, *found)
        return SitePlan(self.name, key, cache.policy.spare, cache.capacity, *found)


class PairsByCall:
    """What a segment remembers: a list, one for each of its plans, for every context and call of a step.

    Attributes:
        current: That of the call that comes next, or runs.
        merging: Whether tokens merge in this step.
    """

    def __init__(self, make: Callable[[str, bool], Sequence[SiteMemory]], state: ForwardState) -> None:
        self.make, self.state = make, state
        self.context: str | None = None
        self.merging = True
        self._kept: dict[tuple[str | None, int], Sequence[SiteMemory]] = {}
        self.current = self._pairs_for(None, 1)

    def __iter__(self) -> Iterator[SiteMemory]:
        """All of them, of every context and call."""
        return chain.from_iterable(self._kept.values())

    def select(self, context: str | None, call: int = 1) -> None:
        """From now on use the pairs of this context's first call in a step, or of a later one."""
        for pairs in self.current:
            pairs.output_missed = pairs.output_missed or self.state.match_output
            # Memory that a compiled call allocated may be gone in the next call, which other pairs make.
            pairs.own_memory()
        self.state.clear()
        self.context, self.current = context, self._kept.get((context, call)) or self._pairs_for(context, call)

    def begin_step(self, checkpoint: bool, merging: bool) -> None:
        """Before a step: recompute or reuse, or leave the tokens alone."""
        self.select(self.context)
        self.merging = merging
        for pairs in self if merging else ():
            pairs.begin_step(checkpoint)

    def finish_step(self) -> list[SitePairs]:
        """After a step: note what the plans are; the pairs that were recomputed in this step."""
        self.select(self.context)
        fresh = [one for one in self if one.key is not None and one.finish_step()]
        return [pairs for pairs in fresh if isinstance(pairs, SitePairs)]

    def reset(self) -> None:
        """Begin a new run, in which every step merges until `begin_step`."""
        self.merging = True
        self.select(self.context)
        for pairs in self:
            pairs.reset()

    def forget(self) -> None:
        """Drop what a forward pass leaves behind, also one that did not finish."""
        self.state.clear()
        for pairs in self:
            pairs.forget()

    def _pairs_for(self, context: str | None, call: int) -> Sequence[SiteMemory]:
        call = min(call, MAX_CALLS_PER_STEP + 1)
        key, uncounted = (context, call), call > MAX_CALLS_PER_STEP
        if key not in self._kept:
            number = f"call {call}{' and later' if uncounted else ''}" if call > 1 else None
            labels = ", ".join(label for label in (context, number) if label)
            self._kept[key] = self.make(f" ({labels})" if labels else "", uncounted)
        return self._kept[key]
