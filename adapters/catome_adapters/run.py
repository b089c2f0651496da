"""What a session does at the beginning and the end of every run and step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import nn

from catome_adapters.compatibility import check_compatible, check_repeatable, waits_for_steps
from catome_adapters.hooks.attachment import Attachment
from catome_adapters.hooks.host import Host
from catome_adapters.hooks.pairs import MAX_CALLS_PER_STEP, SitePairs
from catome_adapters.hooks.rules import MergeRules
from catome_adapters.hooks.scopes import SCOPES
from catome_adapters.hooks.segment import Segment
from catome_adapters.prediction.worth import Trial, Worth
from catome_adapters.recipes.recipe import MergeRecipe
from catome_adapters.records import RunLog, SitePlan, StepRecord
from catome_adapters.reports.summary import explain_unmerged
from catome_adapters.sites.site import MergeSite
from catome_core import Lattice, MergeWarning, fit_capacity

NO_STEPS = (
    "the denoising step is unknown, so {}; call session.begin_step(step, total) before every call of the model, or "
    "attach to the pipeline"
)
RECOMPUTED = "pairs are recomputed at every call and nothing is saved"
STANDS_STILL = "the lattice stands still, and what its keys miss adds up from step to step"
MANY_CALLS = (
    f"the network is called more than {MAX_CALLS_PER_STEP} times in a step; calls after that recompute their pairs and "
    "save little: name them with begin_step(step, total, context=...), which gives every name pairs of its own"
)


class MergeRun:
    """A recipe at work on a model's sites, from run to run and step to step.

    Attributes:
        attachment: The hooks.
        log: What the last run did.
        needs_steps: Whether one call differs from another by its step. Otherwise every call whose step is unknown is a
            run of its own.
    """

    def __init__(
        self,
        recipe: MergeRecipe,
        sites: Sequence[MergeSite],
        before_call: Callable[[MergeRun, Host], None],
        blocks_share: float = 1.0,
    ) -> None:
        self.recipe, self.sites = recipe, sites
        self.log = RunLog()
        self._warned: set[str] = set()
        self._checkpoints: Sequence[int] = ()
        self.denoises = any(site.denoises for site in sites)
        self.worth = Worth(recipe, blocks_share, self.denoises)
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
            pays_off=self.worth.pays_off,
        )
        self.attachment = Attachment(sites, rules, recipe.segment, partial(before_call, self))
        self._trials = {segment: Trial(self.worth, segment.weights) for segment in self.attachment.segments}

    def begin_run(self) -> None:
        """Check what else is at work on the model, and keep the last run's records until there are new ones."""
        check_compatible(self.sites, self.recipe)
        self.log.begin_run()

    def begin_step(self, step: int, total: int) -> None:
        """Decide what this step does."""
        if step > 0:
            check_repeatable(self.sites, self.recipe)
        if total != self.worth.total:
            self.worth.total, self._checkpoints = total, self.recipe.schedule.rescaled(total).steps
        checkpoint = step in self._checkpoints
        merging = self.recipe.merges_at(step, total)
        self.attachment.begin_step(
            step, checkpoint, lambda segment: merging and not self._trials[segment].leaves_unmerged(step, checkpoint)
        )

    def begin_call(self, host: Host, step: int | None) -> None:
        """Before a call of a host that is not the first in its step; without a step, every call recomputes."""
        if step is not None:
            self.attachment.begin_call(host)
            if host.calls == MAX_CALLS_PER_STEP:
                self._warn_once(MANY_CALLS)
        elif self.denoises:
            check_compatible(self.sites, self.recipe)
            if self.needs_steps:
                self._warn_once(NO_STEPS.format(STANDS_STILL if self.thins_keys else RECOMPUTED))

    def finish_step(self, step: int | None, completed: bool) -> bool:
        """After a step: record it, and decide about the next ones; whether anything ran."""
        if completed:
            self._warn_of_idle()
        ran = self.attachment.ran
        # Without any, the step was recorded already, or the scheduler is shared with another pipeline.
        if not ran or (step is None and self.needs_steps):
            return False
        if step is None:
            self.log.begin_run()
        fresh = self.attachment.finish_step()
        self.log.add(self._record(step, bool(fresh), [pairs.plan for _, pairs in ran]), completed)
        self._decide(step, fresh)
        if step is None or step + 1 == self.worth.total:
            unmerged = explain_unmerged(self.log.records, self.recipe, self.sites[0].shape)
            if unmerged:
                self._warn_once(unmerged)
        return True

    def records(self, step: int | None) -> list[StepRecord]:
        """The records of the last run, oldest first, the present step included, so far as it is known which it is."""
        ran = self.attachment.ran
        if not ran or (step is None and self.needs_steps):
            return self.log.records
        fresh = any(pairs.is_fresh for _, pairs in ran)
        record = self._record(step, fresh, [pairs.current_plan() for _, pairs in ran])
        return [record] if step is None else self.log.with_pending(record)

    def predict_gain(self, records: Sequence[StepRecord]) -> tuple[float, float]:
        """Seconds of the networks that are the part of these blocks in these steps, and what merging gains of them.

        Both are 0 where the figures of a block do not say it.
        """
        segments = {pairs.name: segment for segment in self.attachment.segments for pairs in segment.pairs}
        ran = [(segments[plan.name], plan, record.checkpoint) for record in records for plan in record.plans]
        outcomes = [self.worth.outcome(one.weights, plan, fresh, one.blocks_per_plan) for one, plan, fresh in ran]
        whole, gain = (sum(parts) for parts in zip((0.0, 0.0), *outcomes, strict=True))
        return whole, gain

    def select_calls(self, context_of: Callable[[nn.Module], str | None]) -> None:
        """The next calls of each network belong to this context."""
        self.attachment.select_calls(context_of)

    def reset(self) -> None:
        """Forget every plan."""
        self.worth.total = None
        self.attachment.reset()
        for trial in self._trials.values():
            trial.begin_run()

    def _record(self, step: int | None, checkpoint: bool, plans: Sequence[SitePlan]) -> StepRecord:
        total = self.worth.total
        merging = step is None or total is None or self.recipe.merges_at(step, total)
        return StepRecord(step or 0, checkpoint, tuple(plans), merging)

    def _decide(self, step: int | None, fresh: Mapping[Segment, Sequence[SitePairs]]) -> None:
        """After a checkpoint, when it is known how many tokens merge."""
        if fresh and self.recipe.policy.adapts:
            fit_capacity([pairs.cache for found in fresh.values() for pairs in found])
        total = self.worth.total
        if not fresh or step is None or total is None or step + 1 >= total:
            return
        matches = sum(one > step for one in self._checkpoints) / (total - step - 1)
        for segment, (pairs, *_) in fresh.items():
            if pairs.plan.key is not None:
                self._trials[segment].decide(pairs.plan.key, pairs.cache.capacity, matches)

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            MergeWarning.warn(message)

    def _warn_of_idle(self) -> None:
        idle = self.attachment.idle
        if idle:
            MergeWarning.warn(
                f"{idle[0]} is attached and its host was called, but its block never was ({len(idle)} such sites): "
                "nothing merges there; pass the block that the model calls"
            )
