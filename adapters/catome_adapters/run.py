"""What a session does at the beginning and the end of every run and step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

from torch import nn

from catome_adapters.compatibility import check_compatible, waits_for_steps
from catome_adapters.hooks.attachment import Attachment
from catome_adapters.hooks.host import Host
from catome_adapters.hooks.pairs import MAX_CALLS_PER_STEP
from catome_adapters.hooks.rules import MergeRules
from catome_adapters.hooks.scopes import SCOPES
from catome_adapters.prediction.seconds import predict, rates_for
from catome_adapters.recipe import MergeRecipe
from catome_adapters.records import RunLog, SiteStep, StepRecord
from catome_adapters.sites.site import MergeSite
from catome_adapters.sites.weights import SiteWeights
from catome_core import PlanKey, fit_capacity

NO_STEPS = (
    "the denoising step is unknown, so pairs are recomputed at every call and nothing is "
    "saved; call session.begin_step(step, total) before every call of the model, or attach to the pipeline"
)
MANY_CALLS = (
    f"the network is called more than {MAX_CALLS_PER_STEP} times in a step; calls after that recompute their pairs and "
    "save little: name them with begin_step(step, total, context=...), which gives every name pairs of its own"
)


class MergeRun:
    """A recipe at work on a model's sites, from run to run and step to step.

    Attributes:
        attachment: The hooks.
        needs_steps: Whether one call differs from another by its step. Otherwise every call whose step is unknown is a
            run of its own.
    """

    def __init__(self, recipe: MergeRecipe, sites: Sequence[MergeSite], before_call: Callable[[Host], None]) -> None:
        self.recipe, self.sites = recipe, sites
        self.log = RunLog()
        self._warned: set[str] = set()
        self.denoises = any(site.denoises for site in sites)
        reuses = len(recipe.schedule.steps) < recipe.schedule.of or waits_for_steps(recipe) is not None
        self.needs_steps = self.denoises and reuses
        scope = SCOPES[recipe.scope]
        rules = MergeRules(
            scope=scope,
            policy=recipe.policy,
            proportional=recipe.proportional,
            matches_output=recipe.metric == "output",
            seed=recipe.seed,
            strides=recipe.strides,
            pays_off=self.pays_off,
        )
        self.attachment = Attachment(sites, rules, recipe.segment, before_call)

    def pays_off(self, weights: SiteWeights, key: PlanKey) -> bool:
        """Whether merging gains time at this size, or is requested at any."""
        if self.recipe.levels != "auto" or not SCOPES[self.recipe.scope].predictable:
            return True
        rates = rates_for(key.device.type)
        return predict(weights, key.grid, key.batch, self.recipe, rates, denoises=self.denoises).gain > 0

    def begin_run(self) -> None:
        """Check what else is at work on the model, and keep the last run's records until there are new ones."""
        check_compatible(self.sites, self.recipe)
        self.log.begin_run()

    def begin_step(self, step: int, total: int) -> None:
        """Decide what this step does."""
        checkpoint = self.recipe.schedule.is_checkpoint(step, total)
        self.attachment.begin_step(checkpoint, self.recipe.merges_at(step, total))

    def begin_call(self, host: Host, step: int | None) -> None:
        """Before a call of a host that is not the first in its step; without a step, every call recomputes."""
        if step is not None:
            self.attachment.begin_call(host)
            if host.calls == MAX_CALLS_PER_STEP:
                self._warn_once(MANY_CALLS)
        elif self.denoises:
            check_compatible(self.sites, self.recipe)
            if self.needs_steps:
                self._warn_once(NO_STEPS)

    def finish_step(self, step: int | None, completed: bool) -> bool:
        """After a step: record it, and choose the capacities of the next ones; whether anything ran."""
        if completed:
            self._warn_of_idle()
        ran = self.attachment.ran
        # Without any, the step was recorded already, or the scheduler is shared with another pipeline.
        if not ran or (step is None and self.needs_steps):
            return False
        if step is None:
            self.log.begin_run()
        fresh = self.attachment.finish_step()
        self.log.add(StepRecord(step or 0, bool(fresh), tuple(pairs.plan for pairs in ran)))
        if fresh and self.recipe.policy.capacity is None:
            fit_capacity([pairs.cache for pairs in fresh])
        return True

    def pending(self, step: int | None) -> StepRecord | None:
        """The record of the present step so far; None if nothing ran, or if it is unknown which step it is."""
        ran = self.attachment.ran
        if not ran or (step is None and self.needs_steps):
            return None
        plans = tuple(pairs.current_plan() for pairs in ran)
        return StepRecord(step or 0, any(pairs.is_fresh for pairs in ran), plans)

    def rows(self, step: int | None) -> tuple[SiteStep, ...]:
        """Every site and step of the last run, oldest first, the present step included."""
        record = self.pending(step)
        records = self.log.with_pending(record) if step is not None or record is None else [record]
        return tuple(row for record in records for row in record.rows())

    def select_calls(self, context_of: Callable[[nn.Module], str | None]) -> None:
        """The next calls of each network belong to this context."""
        self.attachment.select_calls(context_of)

    def reset(self) -> None:
        """Forget every plan."""
        self.attachment.reset()

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=3)

    def _warn_of_idle(self) -> None:
        idle = self.attachment.idle
        if idle:
            warnings.warn(
                f"{idle[0]} is attached and its host was called, but its block never was ({len(idle)} such sites): "
                "nothing merges there; pass the block that the model calls",
                stacklevel=4,
            )
