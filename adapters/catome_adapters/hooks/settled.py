"""The rest of a run in which nothing is left to decide, since no call of it is large enough to gain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from catome_adapters.hooks.attachment import Attachment
from catome_adapters.hooks.host import CallShapes
from catome_adapters.hooks.segment import Segment
from catome_adapters.records import SitePlan


class LastRun(NamedTuple):
    """A run that was settled when it ended.

    Attributes:
        total: Its number of steps.
        plans: What every step was recorded with.
        calls: The call of each host.
    """

    total: int | None
    plans: Sequence[SitePlan]
    calls: Sequence[CallShapes | None]


class SettledRun:
    """Small calls, in eager code, in which nothing merges for the rest of the run.

    Such a call takes little time, of which a hook is a part that counts. So from the second step on, hosts and blocks
    look no further if a call is like that of the step before. One that is not ends this, and so does compiled code, in
    which smaller calls gain. The run after one that was settled to its end begins as that one ended, if it was settled
    while its first cells held: in later ones, calls may be too small that were not before.

    Attributes:
        plans: What every step is recorded with; None while there is something to decide.
    """

    def __init__(self, attachment: Attachment) -> None:
        self.attachment = attachment
        self.plans: Sequence[SitePlan] | None = None
        self._with_first_cells = False
        self._last: LastRun | None = None

    @property
    def was_called(self) -> bool:
        """Whether a host was called in this step, in eager code."""
        calls = 0
        for host in self.attachment.hosts:
            calls += host.calls
        return calls > 0

    @property
    def holds(self) -> bool:
        """Whether this step, so far, is settled: no block of it ran in compiled code."""
        if self.plans is None:
            return False
        for segment in self.attachment.segments:
            for hooks in segment.hooks:
                if not hooks.settled:
                    return False
        return True

    @property
    def may_begin(self) -> bool:
        """Whether every call of this step was too small; one of each host, and without gradients."""
        calls = all(host.was_called_once for host in self.attachment.hosts)
        return calls and not torch.is_grad_enabled() and all(one.is_too_small for one in self.attachment.segments)

    def begin(self, plans: Sequence[SitePlan]) -> None:
        """From the next step on; each is recorded with these plans."""
        self.plans = plans
        self._with_first_cells = self.attachment.known.part == 0
        for host in self.attachment.hosts:
            host.settle()
        self._leave_alone(True)

    def end(self) -> None:
        """There is something to decide again."""
        if self.plans is None:
            return
        for host in self.attachment.hosts:
            host.settled = None
        self._leave_alone(False)
        # Last, so that what an interrupt left settled is ended the next time.
        self.plans = None

    def end_within_step(self) -> bool:
        """The same, with what this step has left alone so far noted as in any other step; whether anything ended."""
        if self.plans is None:
            return False
        plans = iter(self.plans)
        for segment in self.attachment.segments:
            for pairs, plan in zip(segment.pairs.current, plans, strict=False):
                if segment.host.calls and pairs.key is None:
                    pairs.plan, pairs.key, pairs.merged = plan, plan.key, False
        self.end()
        return True

    def keep(self, total: int | None) -> None:
        """The run ends, after `total` steps: the next one may begin like this."""
        if self.plans is not None and self._with_first_cells:
            self._last = LastRun(total, self.plans, [host.settled for host in self.attachment.hosts])

    def resume(self, total: int) -> None:
        """A run of `total` steps begins: as the last one ended, if that had as many."""
        last, self._last = self._last, None
        hosts = self.attachment.hosts
        if last is None or last.total != total or any(host.context is not None for host in hosts):
            return
        self.plans = last.plans
        for host, call in zip(hosts, last.calls, strict=True):
            host.settled = call
        plans = iter(last.plans)
        for segment in self.attachment.segments:
            # Calls between the runs may have been others.
            for call, plan in zip(segment.last_calls, plans, strict=False):
                call.key, call.pays_off = plan.key, False
        self._leave_alone(True)

    def forget(self) -> None:
        """The next run begins with everything to decide."""
        self._last = None

    def _leave_alone(self, settled: bool) -> None:
        for segment in self.attachment.segments:
            for hooks in segment.hooks:
                hooks.settled = settled


def is_only_compiled(segment: Segment) -> bool:
    """Whether no call of this run was in eager code, the only one of which anything is kept or left alone."""
    return not segment.known.kept and not segment.hooks[0].settled
