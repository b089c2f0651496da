"""A recipe at work on a model: what happens between steps."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from catome_adapters.clock import SchedulerClock
from catome_adapters.contexts import ContextBell, Moment, StepCalls
from catome_adapters.grids import Measure
from catome_adapters.hooks import SiteHooks
from catome_adapters.hosts import GridReader
from catome_adapters.pairs import choose_rungs
from catome_adapters.progressive import ProgressiveHooks
from catome_adapters.recipe import MergeRecipe
from catome_adapters.report import SessionSummary, StepRecord, render_report
from catome_adapters.segments import segments
from catome_adapters.sites import MergeSite, SkippedSite
from catome_adapters.stacking import refuse_beside
from catome_core import MergePlan

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
        self._calls = StepCalls()
        self._readers: dict[tuple[nn.Module, Measure], GridReader] = {}
        hooks, length = (ProgressiveHooks, len(sites)) if recipe.progressive else (SiteHooks, recipe.segment)
        self._hooks = [
            hooks(group, recipe, seed, self._reader(group[0]))
            for seed, group in enumerate(segments(sites, length), recipe.seed)
        ]
        self._stepped = any(site.stepped for site in self.sites)
        hosts = dict.fromkeys(site.host for site in self.sites)
        self._bells = [ContextBell.listen(host, self) for host in hosts if hasattr(host, "cache_context")]
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
            for hooks in (*self._hooks, *self._readers.values()):
                hooks.remove()
            self._stop_listening()
            while self._bells:
                self._bells.pop().stop(self)
            torch.compiler.reset()

    def reset(self) -> None:
        """Forget every plan and the step: the next call begins a run of unknown length."""
        self._step = None
        self._calls.told.clear()
        for hooks in self._hooks:
            hooks.reset()

    def begin_step(self, step: int, total: int, *, context: str | None = None) -> None:
        """Say which step comes next, for models without a scheduler that the session knows.

        Step 0, or one that is not after the last, begins a new run. The first step of a run always recomputes.

        Args:
            step: The step that comes next, from 0.
            total: Steps of the run.
            context: Which call of this step comes next, such as "cond", if there are several: each has pairs of its
                own. The same step again in another context goes on; in the same one, it begins a new run.

        Raises:
            ValueError: If the step lies outside the run.
        """
        if not 0 <= step < total:
            raise ValueError(f"step is {step} of {total}; expected 0 to {total - 1}: steps count from 0")
        self._calls.context = context
        self._tell(step, total, (None, context))

    def begin_run(self, total: int) -> None:
        """A run of `total` steps begins; called by the scheduler."""
        refuse_beside(self.sites, self.recipe)
        self.reset()
        self._new_run = True
        self._start(0, total)

    def begin_at(self, step: int, total: int) -> None:
        """The run begins at this step; called by the scheduler."""
        if self._new_run and self._step not in (None, step):
            self._start(step, total)

    def end_step(self, step: int, total: int) -> None:
        """A step is done; called by the scheduler."""
        if self._step is None:
            return
        self._step = step
        self._warn_of_idle()
        self._finish_step()
        if step + 1 < total:
            self._start(step + 1, total)
        else:
            self.reset()

    @contextmanager
    def in_context(self, network: nn.Module, name: str, moment: Moment) -> Iterator[None]:
        """Until this ends, calls of the network are those of a context; called by the network's `cache_context`."""
        try:
            with self._calls.inside(network, name):
                self._hear(network, name, moment)
                self._enter()
                yield
        finally:
            self._enter()

    def report(self) -> str:
        """What is attached, what is not, and why, with what merging is predicted to save and cost at each site."""
        views = [view for hooks in self._hooks for view in hooks.views()]
        return render_report(self.recipe, views, self.skipped)

    def plans(self) -> dict[str, MergePlan]:
        """Copies of the plans in use, by site; empty before the first call and after the last step of a run."""
        kept = [pairs for hooks in self._hooks for pairs in hooks.kept.values()]
        return {pairs.name: pairs.copy_plan() for pairs in kept if pairs.cache.filled}

    def summary(self) -> SessionSummary:
        """Merged fraction, rung, checkpoint and overflow of every site and step of the last run."""
        self._finish_step()
        return SessionSummary(tuple(row for record in self._records for row in record.rows()))

    def __repr__(self) -> str:
        return f"MergeSession({len(self.sites)} sites, scope={self.recipe.scope!r}, step={self._step} of {self._total})"

    def _reader(self, site: MergeSite) -> GridReader:
        """One reader serves all sites with the same host."""
        key = (site.host, site.measure)
        if key not in self._readers:
            self._readers[key] = GridReader(*key, partial(self._before_call, key))
        return self._readers[key]

    def _before_call(self, key: tuple[nn.Module, Measure]) -> None:
        if self._clock is not None and self._source.scheduler is not self._clock.owner:
            self._stop_listening()
            self._listen()
            self.begin_run(len(self._source.scheduler.timesteps))
        if self._step is None and self._stepped:
            refuse_beside(self.sites, self.recipe)
        if self._step is None and not self._warned and self._stepped:
            self._warned = True
            warnings.warn(NO_STEPS, stacklevel=2)
        if self._step is not None:
            for hooks in self._hooks:
                if hooks.reader is self._readers[key]:
                    hooks.begin_call()

    def _stop_listening(self) -> None:
        if self._clock is not None:
            self._clock.stop(self)
            self._clock = None

    def _listen(self) -> None:
        """Hear the pipeline's scheduler, also one that replaced another since."""
        scheduler = getattr(self._source, "scheduler", None)
        if hasattr(scheduler, "set_timesteps") and hasattr(scheduler, "step"):
            self._clock = SchedulerClock.listen(scheduler, self)

    def _hear(self, network: nn.Module, name: str, moment: Moment) -> None:
        """The step that a context tells, if neither a scheduler nor the caller does."""
        if self._clock or self._calls.explicit or moment.step is None or moment.total is None:
            return
        self._tell(moment.step, moment.total, (network, name))

    def _tell(self, step: int, total: int, call: tuple[nn.Module | None, str | None]) -> None:
        """A call of a step comes next; the first one begins the step."""
        told = self._calls.told
        if (step, total) != (self._step, self._total) or not told or call in told:
            # A step that comes again may follow one that failed before its blocks.
            if self._step is not None and step > self._step:
                self._warn_of_idle()
            self._finish_step()
            if self._step is None or step <= self._step:
                self.begin_run(total)
            self._start(step, total)
            told.clear()
        told.add(call)
        self._enter()

    def _start(self, step: int, total: int) -> None:
        self._step, self._total = step, total
        checkpoint = self.recipe.schedule.is_checkpoint(step, total)
        merging = self.recipe.merges_at(step, total)
        for hooks in self._hooks:
            hooks.begin_step(checkpoint, merging)

    def _enter(self) -> None:
        for hooks in self._hooks:
            hooks.enter(self._calls.context_of(hooks.site.host))

    def _warn_of_idle(self) -> None:
        idle = [hooks.site.name for hooks in self._hooks if hooks.is_idle]
        if idle:
            warnings.warn(
                f"{idle[0]} is attached and its host was called, but its block never was ({len(idle)} such sites): "
                "nothing merges there; pass the block that the model calls",
                stacklevel=4,
            )

    def _finish_step(self) -> None:
        """After a step: note what was recomputed, and choose the rungs."""
        ran = [pairs for hooks in self._hooks for pairs in hooks.kept.values() if pairs.ran]
        # Nothing ran: told already, or the step of another pipeline with the same scheduler.
        if not ran or (self._step is None and self._stepped):
            return
        # A model without steps: every call is a run of its own.
        if self._new_run or self._step is None:
            self._records.clear()
            self._new_run = False
        fresh = [pairs for hooks in self._hooks for pairs in hooks.finish_step()]
        self._records.append(StepRecord(self._step or 0, bool(fresh), tuple(pairs.state for pairs in ran)))
        if fresh and self.recipe.policy.capacity is None:
            choose_rungs(fresh)
