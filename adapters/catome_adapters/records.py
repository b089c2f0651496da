"""What a session did: the plan of every site in every step, as data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

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
    """

    name: str
    key: PlanKey | None = None
    spare: str = "pad"
    capacity: float | None = None
    unmergeable: Tensor | None = None

    @classmethod
    def unmerged(cls, name: str, key: PlanKey, unmergeable: Tensor) -> SitePlan:
        """A step that ran unmerged: every source was kept."""
        return cls(name, key, "fill", None, unmergeable)


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


class StepRecord(NamedTuple):
    """All sites in one step."""

    step: int
    checkpoint: bool
    plans: tuple[SitePlan, ...]

    def rows(self) -> Iterator[SiteStep]:
        """One row per site that ran; reads from the device."""
        for plan in self.plans:
            if plan.key is not None and plan.unmergeable is not None:
                yield self._row(plan, plan.key, plan.unmergeable.tolist())

    def _row(self, plan: SitePlan, key: PlanKey, unmergeable: list[int]) -> SiteStep:
        grid, room = key.grid, key.grid.kept(plan.capacity)
        kept = [room if plan.spare == "fill" else min(count, room) for count in unmergeable]
        mergeable, merged = ((grid.sources - sum(left) / len(kept)) / grid.tokens for left in (unmergeable, kept))
        overflow = sum(max(0, count - room) for count in unmergeable)
        slots = grid.slots(plan.capacity)
        return SiteStep(
            plan.name, self.step, self.checkpoint, grid.tokens, slots, mergeable, merged, room / grid.area, overflow
        )


class RunLog:
    """The records of the last run, oldest first."""

    def __init__(self) -> None:
        self.records: list[StepRecord] = []
        self._is_over = False

    def begin_run(self) -> None:
        """The next record is the first of a new run; until then those of the run before can be read."""
        self._is_over = True

    def add(self, record: StepRecord) -> None:
        """Append a record."""
        self.records = self.with_pending(record)
        self._is_over = False

    def with_pending(self, record: StepRecord | None) -> list[StepRecord]:
        """The records with one that is not in the log yet."""
        if record is None:
            return self.records
        return [record] if self._is_over else [*self.records, record]
