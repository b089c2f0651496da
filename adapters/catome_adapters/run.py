"""What a session does at the beginning and the end of every run and step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from torch import nn

from catome_adapters.compatibility import check_compatible, check_repeatable, waits_for_steps
from catome_adapters.hooks.attachment import Attachment
from catome_adapters.hooks.host import Host
from catome_adapters.hooks.memory import SiteMemory
from catome_adapters.hooks.pairs import MAX_CALLS_PER_STEP, SitePairs
from catome_adapters.hooks.rules import MergeRules
from catome_adapters.hooks.scopes import SCOPES
from catome_adapters.hooks.segment import Segment
from catome_adapters.hooks.settled import SettledRun, is_only_compiled
from catome_adapters.prediction.network import ALL, NetworkPart
from catome_adapters.prediction.worth import Trial, Worth
from catome_adapters.recipes.recipe import MergeRecipe
from catome_adapters.records import RunLog, SitePlan, StepRecord
from catome_adapters.reports.unmerged import explain_unmerged
from catome_adapters.reports.warned import MANY_CALLS, NO_STEPS, RECOMPUTED, STANDS_STILL, Warned, warn_of_idle
from catome_adapters.sites.site import MergeSite
from catome_core import Lattice, fit_capacity


class MergeRun:
    """A recipe at work on a model's sites, from run to run and step to step.

    Attributes:
        attachment: The hooks.
        log: What the last run did.
        settled: Whether the rest of the run is left alone.
        needs_steps: Whether one call differs from another by its step. Otherwise every call whose step is unknown is a
            run of its own.
    """

    def __init__(
        self,
        recipe: MergeRecipe,
        sites: Sequence[MergeSite],
        before_call: Callable[[MergeRun, Host], None],
        undo: ExitStack,
        part: NetworkPart = ALL,
    ) -> None:
        self.recipe, self.sites, self.log, self._warned = recipe, sites, RunLog(), Warned()
        self._checkpoints: Sequence[int] = ()
        self.denoises = any(site.denoises for site in sites)
        self.worth = Worth(recipe, part, self.denoises)
        self.thins_keys = isinstance(recipe.policy, Lattice)
        reuses = len(recipe.schedule.steps) < recipe.schedule.of and not self.thins_keys
        self.needs_steps = self.denoises and (reuses or waits_for_steps(recipe) is not None)
        rules = MergeRules(
            scope=SCOPES[recipe.scope],
            policy=recipe.policy,
            proportional=recipe.proportional,
            matches_output=recipe.metric == "output",
            seed=recipe.seed,
            strides=recipe.strides,
            parts=1 + len(recipe.later),
            pays_off=self.worth.pays_off,
        )
        self.attachment = Attachment(sites, rules, recipe.segment, partial(before_call, self), undo)
        self.settled = SettledRun(self.attachment)
        self._step, self._merging = 0, True
        self._trials: dict[Segment, Trial] = {}

    def begin_run(self) -> None:
        """Check what else is at work on the model, and keep the last run's records until there are new ones."""
        check_compatible(self.sites, self.recipe)
        self.log.begin_run()

    def begin_step(self, step: int, total: int) -> None:
        """Decide what this step does."""
        if step > 0:
            check_repeatable(self.sites, self.recipe)
        for host in self.attachment.hosts:
            host.begin_step(True)
        self._step, self._merging = step, self.recipe.merges_at(step, total)
        begins = total != self.worth.total
        if begins:
            self.worth.begin_run(total)
            self._checkpoints = self.recipe.schedule.rescaled(total).steps
            self.settled.resume(total)
        self.attachment.known.begin_part(self.recipe.part_at(step, total))
        if begins or self.settled.plans is None:
            self._begin_segments()
            return
        # Compiled code, which does not ask what is settled, may be called at any time.
        for segment in self.attachment.segments:
            segment.pairs.merging = self._merging

    def begin_call(self, host: Host, step: int | None) -> None:
        """Before a call of a host that is not the first in its step; without a step, every call recomputes."""
        lost = STANDS_STILL if self.thins_keys else RECOMPUTED
        if step is not None and self.settled.end_within_step():
            self._begin_segments()
        self.attachment.begin_call(host)
        if step is not None and host.calls == MAX_CALLS_PER_STEP:
            self._warned.once(MANY_CALLS.format(lost))
        if step is None and self.denoises:
            check_compatible(self.sites, self.recipe)
            if self.needs_steps:
                self._warned.once(NO_STEPS.format(lost))

    def finish_step(self, step: int | None, completed: bool) -> bool:
        """After a step: record it, and decide about the next ones; whether anything ran."""
        ran = self.ran
        if completed and ran is None:
            self.settled.end()
        if completed and self.settled.plans is None:
            warn_of_idle(self.attachment.idle)
        # Otherwise the step was recorded already, or the scheduler is shared with another pipeline.
        if ran is None or (step is None and self.needs_steps):
            return False
        if step is None:
            self.log.begin_run()
        fresh, plans = self._finish_segments(step, ran)
        self.log.add(self._record(step, bool(fresh), plans), completed)
        if fresh:
            self._decide(step, fresh)
        if step is None or step + 1 == self.worth.total:
            self.settled.keep(self.worth.total)
            if unmerged := explain_unmerged(self.log.records, self.recipe, self.sites[0].shape):
                self._warned.once(unmerged)
        return True

    def records(self, step: int | None) -> list[StepRecord]:
        """The records of the last run, oldest first, the present step included, so far as it is known which it is."""
        ran = self.ran
        if ran is None or (step is None and self.needs_steps):
            return self.log.records
        plans = [pairs.current_plan() for _, pairs in ran] if ran else self.settled.plans or ()
        record = self._record(step, any(pairs.is_fresh for _, pairs in ran), plans)
        return [record] if step is None else self.log.with_pending(record)

    def select_calls(self, context_of: Callable[[nn.Module], str | None]) -> None:
        """The next calls of each network belong to this context."""
        if self.settled.plans is not None and all(context_of(host.module) is None for host in self.attachment.hosts):
            return
        if self.settled.end_within_step():
            self._begin_segments()
        self.attachment.select_calls(context_of)

    def reset(self) -> None:
        """Forget every plan."""
        self.worth.begin_run(None)
        self.settled.end()
        self.attachment.reset()
        self._trials.clear()

    @property
    def ran(self) -> Sequence[tuple[Segment, SiteMemory]] | None:
        """What is remembered of this step's calls; None if there were none. A settled run remembers nothing more."""
        if not self.settled.holds:
            # What compiled code has ended.
            self.settled.end_within_step()
            return self.attachment.ran or None
        return () if self.settled.was_called else None

    def _begin_segments(self) -> None:
        """Before a step, or in the middle of one before a call that is unlike those of the steps before."""
        step, merging = self._step, self._merging
        checkpoint = step in self._checkpoints
        lost = {segment for segment, trial in self._trials.items() if trial.leaves_unmerged(step, checkpoint)}
        self.attachment.begin_step(step, checkpoint, lambda segment: merging and segment not in lost)

    def _finish_segments(
        self, step: int | None, ran: Sequence[tuple[Segment, SiteMemory]]
    ) -> tuple[Mapping[Segment, Sequence[SitePairs]], Sequence[SitePlan]]:
        """The pairs that were recomputed, and the plans of all that ran."""
        if self.settled.plans is not None:
            return {}, self.settled.plans
        settles = step is not None and self.settled.may_begin
        fresh = self.attachment.finish_step()
        plans = [pairs.plan for _, pairs in ran]
        if settles:
            self.settled.begin(plans)
        return fresh, plans

    def _record(self, step: int | None, checkpoint: bool, plans: Sequence[SitePlan]) -> StepRecord:
        total = self.worth.total
        merging = step is None or total is None or self.recipe.merges_at(step, total)
        return StepRecord(step or 0, checkpoint, tuple(plans), merging)

    def _decide(self, step: int | None, fresh: Mapping[Segment, Sequence[SitePairs]]) -> None:
        """After a checkpoint, when it is known how many tokens merge."""
        if self.recipe.policy.adapts:
            fit_capacity([pairs.cache for found in fresh.values() for pairs in found])
        total = self.worth.total
        if step is None or total is None or step + 1 >= total:
            return
        matches = sum(one > step for one in self._checkpoints) / (total - step - 1)
        for segment, (pairs, *_) in fresh.items():
            if pairs.plan.key is not None:
                trial = self._trials.setdefault(segment, Trial(self.worth, segment.weights))
                trial.decide(pairs.plan.key, pairs.cache.capacity, matches, is_only_compiled(segment))
