"""What a session did: the plan of every site in every step, as data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from catome_core import PlanKey


class SitePlan(NamedTuple):
    """The plan of one site during one step.

    Attributes:
        name: The site's, with its context.
        key: What the plan was made for; None for a site that has not run.
        spare: Of the policy.
        capacity: Kept slots as a fraction of the tokens; None: one for every source.
        unmergeable: int64 (batch,), sources that are not above the threshold; stays on the device until it is read.
        similarity: float32 (5,), quartiles of the sources' similarity when the pairs were found; on the device, too.
        merged: Whether the site took part in this step.
    """

    name: str
    key: PlanKey | None = None
    spare: str = "pad"
    capacity: float | None = None
    unmergeable: Tensor | None = None
    similarity: Tensor | None = None
    merged: bool = True

    @property
    def merges(self) -> bool:
        """Whether its capacity leaves fewer slots than tokens."""
        if self.key is None or self.capacity is None:
            return False
        return self.key.grid.slots(self.capacity) < self.key.grid.tokens


class SiteStep(NamedTuple):
    """One site in one step.

    Attributes:
        site: Its name.
        step: From 0.
        checkpoint: Whether pairs were recomputed.
        tokens: Tokens before the merge.
        slots: Slots that were computed, padding included.
        mergeable_fraction: Share of the tokens that is above the threshold, mean over the batch.
        merged_fraction: Share of the tokens that was merged away, mean over the batch.
        capacity: Kept slots as a fraction of the tokens: the rung of the ladder.
        overflow: Sources that merged below the threshold because kept slots were too few, summed over the batch.
        similarity: Minimum, quartiles and maximum of the sources' similarity to their destinations, when the pairs
            were found; None if they never were.
        left_unmerged: Whether it would have merged, and was predicted to lose time.
    """

    site: str
    step: int
    checkpoint: bool
    tokens: int
    slots: int
    mergeable_fraction: float
    merged_fraction: float
    capacity: float
    overflow: int
    similarity: tuple[float, ...] | None = None
    left_unmerged: bool = False


class StepRecord(NamedTuple):
    """All sites in one step.

    Attributes:
        step: From 0.
        checkpoint: Whether pairs were recomputed.
        plans: Of every site that ran.
        merging: Whether the recipe merges in this step.
    """

    step: int
    checkpoint: bool
    plans: tuple[SitePlan, ...]
    merging: bool = True

    def rows(self) -> Iterator[SiteStep]:
        """One row per site that ran; reads from the device."""
        for plan in self.plans:
            if plan.key is not None and plan.unmergeable is not None:
                yield self._row(plan, plan.key, plan.unmergeable.tolist())

    def _row(self, plan: SitePlan, key: PlanKey, unmergeable: list[int]) -> SiteStep:
        grid, room = key.grid, key.grid.kept(plan.capacity)
        kept = [room if plan.spare == "fill" else min(count, room) for count in unmergeable]
        # An empty batch has no mean.
        samples = max(1, len(kept))
        mergeable, merged = ((grid.sources - sum(left) / samples) / grid.tokens for left in (unmergeable, kept))
        return SiteStep(
            site=plan.name,
            step=self.step,
            checkpoint=self.checkpoint,
            tokens=grid.tokens,
            slots=grid.slots(plan.capacity),
            mergeable_fraction=mergeable,
            merged_fraction=merged,
            capacity=room / grid.area,
            overflow=sum(max(0, count - room) for count in unmergeable),
            similarity=None if plan.similarity is None else tuple(plan.similarity.tolist()),
            left_unmerged=self.merging and not plan.merged,
        )


class RunLog:
    """The records of the last run, oldest first.

    Attributes:
        records: One for each step.
        seconds: From the run's beginning until the end of a step, or until it was submitted to an asynchronous device;
            None if no end was observed.
        timed_steps: Number of steps until then.
    """

    def __init__(self) -> None:
        self.records: list[StepRecord] = []
        self.seconds: float | None = None
        self.timed_steps = 0
        self._next_is_first = False
        self._began = time.perf_counter()

    def begin_run(self) -> None:
        """The next record is the first of a new run; until then those of the run before can be read."""
        self._next_is_first = True
        self._began = time.perf_counter()

    def add(self, record: StepRecord, ends_now: bool) -> None:
        """Append a record; `ends_now` if its step is over at this moment, and not some time ago."""
        if self._next_is_first:
            self.seconds, self.timed_steps = None, 0
        self.records = self.with_pending(record)
        self._next_is_first = False
        if ends_now:
            self.seconds, self.timed_steps = time.perf_counter() - self._began, len(self.records)

    def with_pending(self, record: StepRecord) -> list[StepRecord]:
        """The records with one that is not in the log yet."""
        return [record] if self._next_is_first else [*self.records, record]


def quartiles(score: Tensor) -> Tensor:
    """Minimum, quartiles and maximum, float32 (5,), of scores of any shape; empty if there are none.

    Examples:
        >>> quartiles(torch.tensor([[0.0, 0.5, 1.0]]))
        tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000])
    """
    ordered = score.flatten().sort().values
    # Not `quantile`, which is limited to 16 million elements, and reads from the device to check its input.
    ranks = torch.linspace(0, len(ordered) - 1, 5, device=score.device) if len(ordered) else ordered
    return ordered[ranks.floor().long()].lerp(ordered[ranks.ceil().long()], ranks.frac())
