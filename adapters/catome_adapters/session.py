"""The handle of a recipe at work on a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from catome_adapters.hooks.graphs import GraphsOfTheLadder
from catome_adapters.hooks.host import Host
from catome_adapters.recipe import MergeRecipe
from catome_adapters.report import SessionSummary, render_report, report_segment
from catome_adapters.run import MergeRun
from catome_adapters.sites.site import MergeSite, SkippedSite
from catome_adapters.steps.sources import observe_steps
from catome_adapters.steps.tracker import StepTracker
from catome_core import MergePlan


class MergeSession:
    """A recipe at work on a model; made by `attach`.

    Use it as a context manager, or call `detach` at the end. The steps come from the pipeline's scheduler, or from
    diffusers' cache contexts and guiders. Where there is none of them, call `begin_step` before every call of the
    model: until then every call recomputes its pairs, which is right but saves nothing.

    Attributes:
        recipe: The recipe.
        sites: The sites that it is attached to.
        skipped: The blocks that it is not attached to, with the reasons.
    """

    def __init__(
        self,
        model_or_pipeline: Any,
        recipe: MergeRecipe,
        sites: Sequence[MergeSite],
        skipped: Sequence[SkippedSite],
    ) -> None:
        self.recipe, self.sites, self.skipped = recipe, tuple(sites), tuple(skipped)
        self._graphs = [GraphsOfTheLadder()] if recipe.policy.capacity is None else []
        self._run = MergeRun(recipe, self.sites, self._before_call)
        self._tracker = StepTracker(self._run)
        networks = list(dict.fromkeys(site.host for site in self.sites))
        observe_steps(model_or_pipeline, networks, self._tracker)
        for host in self._run.attachment.hosts:
            host.components = self._tracker.components

    def __enter__(self) -> MergeSession:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    def detach(self) -> None:
        """Restore the model and its scheduler exactly; safe to call again. What was compiled is compiled anew."""
        try:
            self._tracker.finish()
        finally:
            for part in (self._run.attachment, *self._tracker.sources, *self._graphs):
                part.remove()
            torch.compiler.reset()

    def reset(self) -> None:
        """Forget every plan and the step: the next call begins a run of unknown length."""
        self._tracker.reset()

    def begin_step(self, step: int, total: int, *, context: str | None = None) -> None:
        """Say which step comes next, for models without a scheduler that the session can observe.

        Step 0, or one that is not after the last, begins a new run. The first step of a run always recomputes.

        Args:
            step: The step that comes next, from 0.
            total: Number of steps of the run.
            context: Which call of this step comes next, such as "cond", if there are several: each has pairs of its
                own. The same step again in another context goes on; in the same one, it begins a new run.

        Raises:
            ValueError: If the step lies outside the run.
        """
        if not 0 <= step < total:
            raise ValueError(f"step is {step} of {total}; expected 0 to {total - 1}: steps count from 0")
        self._tracker.context = context
        self._tracker.on_step(step, total, (None, context))

    def report(self) -> str:
        """What is attached, what is not, and why, with what merging is predicted to save and cost at each site."""
        attached = [site for segment in self._run.attachment.segments for site in report_segment(segment)]
        return render_report(self.recipe, attached, self.skipped)

    def plans(self) -> dict[str, MergePlan]:
        """Copies of the plans in use, by site; empty before the first call and after the last step of a run."""
        stored = [pairs for pairs in self._run.attachment.pairs if pairs.cache.has_plan and not pairs.always_due]
        return {pairs.name: pairs.cache.plan().clone() for pairs in stored}

    def summary(self) -> SessionSummary:
        """Merged fraction, rung, checkpoint and overflow of every site and step of the last run; changes nothing."""
        return SessionSummary(self._run.rows(self._tracker.step))

    def __repr__(self) -> str:
        sites, scope = len(self.sites), self.recipe.scope
        return f"MergeSession({sites} sites, scope={scope!r}, step={self._tracker.step} of {self._tracker.total})"

    def _before_call(self, host: Host) -> None:
        for source in self._tracker.sources:
            source.update()
        self._run.begin_call(host, self._tracker.step)
