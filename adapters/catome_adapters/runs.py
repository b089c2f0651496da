"""The runs of all recipes of a session, driven as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from torch import nn

from catome_adapters.architectures.replaced import AttachedNetworks
from catome_adapters.hooks.memory import SiteMemory
from catome_adapters.hooks.settled import is_only_compiled
from catome_adapters.records import RunLog, StepRecord
from catome_adapters.reports.report import render_report, report_segment
from catome_adapters.reports.summary import SessionSummary, summarize_run
from catome_adapters.run import MergeRun
from catome_adapters.sites.site import SkippedSite


class MergeRuns:
    """One recipe at work on a model, or several, each on sites of its own.

    Attributes:
        each: The run of every recipe.
        networks: What they are attached to.
    """

    def __init__(self, each: Sequence[MergeRun], networks: AttachedNetworks) -> None:
        self.each, self.networks = each, networks

    @property
    def pairs(self) -> Iterator[SiteMemory]:
        """What is remembered from step to step, of all recipes."""
        return chain.from_iterable(run.attachment.pairs for run in self.each)

    @property
    def ran(self) -> bool:
        """Whether anything has run in this step."""
        return any(run.ran is not None for run in self.each)

    def begin_run(self) -> None:
        """A run begins."""
        self.networks.warn_of_replaced()
        for run in self.each:
            run.begin_run()

    def begin_step(self, step: int, total: int) -> None:
        """Step `step`, from 0, of `total` begins."""
        for run in self.each:
            run.begin_step(step, total)

    def finish_step(self, step: int | None, completed: bool) -> bool:
        """The step ends; whether anything ran."""
        # Every run finishes its step, whatever the others return.
        ran = [run.finish_step(step, completed) for run in self.each]
        return any(ran)

    def select_calls(self, context_of: Callable[[nn.Module], str | None]) -> None:
        """The next calls of each network belong to this context."""
        for run in self.each:
            run.select_calls(context_of)

    def reset(self) -> None:
        """Forget every plan."""
        for run in self.each:
            run.reset()

    def forget_settled(self) -> None:
        """The next run begins with everything to decide."""
        for run in self.each:
            run.settled.forget()

    def report(self, skipped: Sequence[SkippedSite]) -> str:
        """What each recipe is attached to, and what none is."""
        texts: list[str] = []
        for run in self.each:
            attached = [site for segment in run.attachment.segments for site in report_segment(segment)]
            texts.append(render_report(run.recipe, attached, skipped if run is self.each[-1] else ()))
        return "\n\n".join(texts)

    def summarize(self, step: int | None) -> SessionSummary:
        """The last run, with the present step so far; reads from the device."""
        records = [run.records(step) for run in self.each]
        whole, gain = (sum(parts) for parts in zip(*map(_predict_gain, self.each, records), strict=True))
        return summarize_run(
            sorted(chain.from_iterable(records), key=_step_of),
            max((run.log for run in self.each), key=_timed_steps_of),
            whole / (whole - gain) if whole else None,
            sum(run.attachment.memory for run in self.each),
            all(run.thins_keys for run in self.each),
        )


def _predict_gain(run: MergeRun, records: Sequence[StepRecord]) -> tuple[float, float]:
    """Seconds of the networks that are the part of a run's blocks in these steps, and what merging gains of them.

    Both are 0 where the figures of a block do not say it.
    """
    segments = {pairs.name: segment for segment in run.attachment.segments for pairs in segment.pairs}
    ran = [(segments[plan.name], plan, record.checkpoint) for record in records for plan in record.plans]
    outcomes = [
        run.worth.outcome(one.weights, plan, fresh, one.blocks_per_plan, is_only_compiled(one))
        for one, plan, fresh in ran
    ]
    whole, gain = (sum(parts) for parts in zip((0.0, 0.0), *outcomes, strict=True))
    return whole, gain


def _step_of(record: StepRecord) -> int:
    return record.step


def _timed_steps_of(log: RunLog) -> int:
    return log.timed_steps
