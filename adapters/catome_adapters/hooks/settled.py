"""The rest of a run in which nothing is left to decide, since no call of it is large enough to gain."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from catome_adapters.hooks.attachment import Attachment
from catome_adapters.records import SitePlan


class SettledRun:
    """Small calls, in eager code, in which nothing merges for the rest of the run.

    Such a call takes little time, of which a hook is a part that counts. So from the second step on, hosts and blocks
    look no further if a call is like that of the step before. One that is not ends this.

    Attributes:
        plans: What every step is recorded with; None while there is something to decide.
    """

    def __init__(self, attachment: Attachment) -> None:
        self.attachment = attachment
        self.plans: Sequence[SitePlan] | None = None

    @property
    def was_called(self) -> bool:
        """Whether a host was called in this step."""
        return any(host.calls for host in self.attachment.hosts)

    @property
    def may_begin(self) -> bool:
        """Whether every call of this step was too small; one of each host, and without gradients."""
        calls = all(host.was_called_once for host in self.attachment.hosts)
        return calls and not torch.is_grad_enabled() and all(one.is_too_small for one in self.attachment.segments)

    def begin(self, plans: Sequence[SitePlan]) -> None:
        """From the next step on; each is recorded with these plans."""
        self.plans = plans
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

    def _leave_alone(self, settled: bool) -> None:
        for segment in self.attachment.segments:
            for hooks in segment.hooks:
                hooks.settled = settled
