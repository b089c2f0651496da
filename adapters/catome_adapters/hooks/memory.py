"""What a site remembers from step to step, be it pairs or nothing but the step."""

from __future__ import annotations

import torch
from torch import Tensor

from catome_adapters.records import SitePlan
from catome_core import MergePlan, PlanKey, TokenGrid


class SiteMemory:
    """What one site, or segment, remembers for one of the calls that a step makes of the network.

    Attributes:
        name: The site's, with the context.
        plan: What the last step in which it ran made of its tokens.
        key: The tokens of this step; None if it has not run.
        merged: Whether it merged in this step.
        output_missed: Whether the output that was to be matched never came.
        is_fresh: Whether pairs were recomputed in this step.
        nbytes: Bytes that it holds between steps.
    """

    is_fresh, nbytes = False, 0

    def __init__(self, name: str) -> None:
        self.name = name
        self.reset()

    def reset(self) -> None:
        """Begin a new run."""
        self.forget()
        self.plan = SitePlan(self.name)

    def forget(self) -> None:
        """Drop what a step leaves behind, also one that did not finish."""
        self.key: PlanKey | None = None
        self.merged = self.output_missed = False

    def begin_step(self, checkpoint: bool) -> None:
        """Before a step that merges."""

    def finish_step(self) -> bool:
        """After a step in which it ran: note what the plan is, and whether it was recomputed in this step."""
        plan, is_fresh = self.current_plan(), self.is_fresh
        self.forget()
        self.plan = plan
        return is_fresh

    def waits_for_output(self, key: PlanKey) -> bool:
        """Whether such tokens have to run unmerged first."""
        return False

    def left_unmerged(self, key: PlanKey) -> SitePlan:
        """The record of tokens that were left alone; that of the last step, if it is the same."""
        if not self.plan.merged and self.plan.key == key:
            return self.plan
        return SitePlan(self.name, key, "fill", None, torch.full((key.batch,), key.grid.sources), merged=False)

    def own_memory(self) -> None:
        """Between steps: keep nothing in memory that a compiled call has lent."""

    def plan_for(self, tokens: Tensor, grid: TokenGrid) -> MergePlan | None:
        """The plan of this step for tokens (batch, tokens, channels); None where it would merge nothing."""
        raise NotImplementedError

    def current_plan(self) -> SitePlan:
        """What this step has made of its tokens so far; changes nothing."""
        raise NotImplementedError

    def plan_in_use(self) -> MergePlan | None:
        """The plan of the last call, if there was one in this run."""
        raise NotImplementedError
