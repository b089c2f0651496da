"""A recipe at work on a model: what happens between steps."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from catome_adapters.clock import SchedulerClock
from catome_adapters.hooks import SiteHooks
from catome_adapters.recipe import MergeRecipe
from catome_adapters.report import SessionSummary, StepRecord, render_report
from catome_adapters.segments import segments
from catome_adapters.sites import MergeSite, SkippedSite
from catome_core import MergePlan
from catome_core.ladder import LADDER, choose_rung

NO_STEPS = (
    "nobody tells the session which denoising step this is, so pairs are recomputed at every call and nothing is "
    "saved; call session.begin_step(step, total) before every call of the model, or attach to the pipeline"
)


class MergeSession:
    """A recipe at work on a model; made by `attach`.

    Use it as a context manager, or call `detach` at the end. A pipeline with a scheduler tells the session its
    steps. Without one, call `begin_step` before every call of the model: until then every call recomputes its
    pairs, which is right but saves nothing.

    Attributes:
        recipe: The recipe.
        sites: The sites that it is attached to.
    """

    def __init__(
        self, source: Any, recipe: MergeRecipe, sites: Sequence[MergeSite], skipped: Sequence[SkippedSite]
    ) -> None:
        self.recipe, self.sites, self.skipped = recipe, tuple(sites), tuple(skipped)
        self._source = source
        self._clock: SchedulerClock | None = None
        self._step: int | None = None
        self._total = 0
        self._records: list[StepRecord] = []
        self._new_run = True
        self._warned = False
        self._hooks = [
            SiteHooks(group, recipe, seed, self._before_call)
            for seed, group in enumerate(segments(sites, recipe.segment), recipe.seed)
        ]
        self._listen()

    def __enter__(self) -> MergeSession:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    def detach(self) -> None:
        """Restore the model and its scheduler exactly; safe to call again. What was compiled is compiled anew."""
        try:
            self._finish_step()
        finally:
            for hooks in self._hooks:
                hooks.remove()
            self._stop_listening()
            torch.compiler.reset()

    def reset(self) -> None:
        """Forget every plan and the step: the next call begins a run of unknown length."""
        self._step = None
        for hooks in self._hooks:
            hooks.reset()

    def begin_step(self, step: int, total: int) -> None:
        """Say which step comes next, for models without a scheduler that the session knows.

        Step 0, or one that is not after the last, begins a new run. The first step of a run always recomputes.

        Args:
            step: The step that comes next, from 0.
            total: Steps of the run.

        Raises:
            ValueError: If the step lies outside the run.
        """
        if not 0 <= step < total:
            raise ValueError(f"step is {step} of {total}; expected 0 to {total - 1}: steps count from 0")
        self._finish_step()
        if self._step is None or step <= self._step:
            self.begin_run(total)
        self._start(step, total)

    def begin_run(self, total: int) -> None:
        """A run of `total` steps begins; called by the scheduler."""
        self.reset()
        self._new_run = True
        self._start(0, total)

    def end_step(self, step: int, total: int) -> None:
        """A step is done; called by the scheduler."""
        if self._step is None:
            return
        self._step = step
        self._finish_step()
        if step + 1 < total:
            self._start(step + 1, total)
        else:
            self.reset()

    def report(self) -> str:
        """What is attached, what is not, and why, with what merging is predicted to save and cost at each site."""
        views = [view for hooks in self._hooks for view in hooks.views()]
        return render_report(self.recipe, views, self.skipped)

    def plans(self) -> dict[str, MergePlan]:
        """Copies of the plans in use, by site; empty before the first call and after the last step of a run."""
        caches = {hooks.site.name: hooks.cache for hooks in self._hooks if hooks.cache.filled}
        return {name: _copy(cache.plan()) for name, cache in caches.items()}

    def summary(self) -> SessionSummary:
        """Merged fraction, rung, checkpoint and overflow of every site and step of the last run."""
        self._finish_step()
        return SessionSummary(tuple(row for record in self._records for row in record.rows()))

    def __repr__(self) -> str:
        return f"MergeSession({len(self.sites)} sites, scope={self.recipe.scope!r}, step={self._step} of {self._total})"

    def _before_call(self) -> None:
        if self._clock is not None and self._source.scheduler is not self._clock.scheduler:
            self._stop_listening()
            self._listen()
            self.begin_run(len(self._source.scheduler.timesteps))
        if self._step is None and not self._warned:
            self._warned = True
            warnings.warn(NO_STEPS, stacklevel=2)

    def _stop_listening(self) -> None:
        if self._clock is not None:
            self._clock.stop(self)
            self._clock = None

    def _listen(self) -> None:
        """Hear the pipeline's scheduler, also one that replaced another since."""
        scheduler = getattr(self._source, "scheduler", None)
        if hasattr(scheduler, "set_timesteps") and hasattr(scheduler, "step"):
            self._clock = SchedulerClock.listen(scheduler, self)

    def _start(self, step: int, total: int) -> None:
        self._step, self._total = step, total
        checkpoint = self.recipe.schedule.is_checkpoint(step, total)
        merging = self.recipe.merges_at(step, total)
        for hooks in self._hooks:
            hooks.begin_step(checkpoint, merging)

    def _finish_step(self) -> None:
        """After a step: note what was recomputed, and choose the rungs."""
        ran = [hooks for hooks in self._hooks if hooks.ran]
        # Nothing ran: told already, or the step of another pipeline with the same scheduler.
        if self._step is None or not ran:
            return
        if self._new_run:
            self._records.clear()
            self._new_run = False
        fresh = [hooks for hooks in self._hooks if hooks.finish_step()]
        self._records.append(StepRecord(self._step, bool(fresh), tuple(hooks.state for hooks in ran)))
        if fresh and self.recipe.policy.capacity is None:
            self._choose_rungs(fresh)

    def _choose_rungs(self, fresh: Sequence[SiteHooks]) -> None:
        """One capacity for all sites of a grid, so that they share their graphs; one read from the device for all."""
        levels = defaultdict(list)
        demands = torch.stack([hooks.cache.demand() for hooks in fresh]).tolist()
        for hooks, demand in zip(fresh, demands, strict=True):
            levels[hooks.state.grid].append((hooks, demand))
        for grid, members in levels.items():
            rung = choose_rung(LADDER, max(demand for _, demand in members), grid)
            for hooks, _ in members:
                hooks.cache.use_capacity(rung)


def _copy(plan: MergePlan) -> MergePlan:
    return MergePlan(plan.slot.clone(), plan.size.clone(), plan.anchor.clone())
