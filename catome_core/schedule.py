"""Which denoising steps recompute the pairs (paper, III-B and Table II)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, nextafter
from types import MappingProxyType

from catome_core import checks

TOTAL = "the number of steps of the run, at least 1"


@dataclass(frozen=True)
class CheckpointSchedule:
    """The steps at which pairs are recomputed; between them they are reused.

    Steps are counted from 0, the first is always a checkpoint, and the list is stored with the number of steps
    it was made for, so that a run of another length uses it in proportion.

    Args:
        steps: Checkpoint steps, each from 0 to `of` - 1.
        of: The number of denoising steps that the list was made for.

    Raises:
        TypeError: If a step or the number of steps is not a whole number.
        ValueError: If a step lies outside the run.

    Examples:
        >>> schedule = CheckpointSchedule((0, 10, 40), of=50)
        >>> schedule.is_checkpoint(10), schedule.is_checkpoint(2, total=10), schedule.is_checkpoint(10, total=10)
        (True, True, False)
    """

    steps: tuple[int, ...]
    of: int

    def __post_init__(self) -> None:
        of = checks.integer("of", self.of, "the number of denoising steps that the list was made for", least=1)
        steps = checks.integers("steps", self.steps, "the steps that recompute, such as (0, 10, 40)")
        outside = [step for step in steps if not 0 <= step < of]
        if outside:
            raise ValueError(f"steps {outside} lie outside a run of {of}; expected 0 to {of - 1}: steps count from 0")
        object.__setattr__(self, "of", of)
        object.__setattr__(self, "steps", tuple(sorted({0, *steps})))

    def is_checkpoint(self, step: int, total: int | None = None) -> bool:
        """Whether this step (from 0) of a run of `total` steps recomputes; None means a run of `of` steps."""
        return step in (self if total is None else self.rescaled(total)).steps

    def rescaled(self, total: int) -> CheckpointSchedule:
        """The same schedule for a run of `total` steps, every checkpoint at the same fraction of the run.

        Where every step of several is one, every step of the other run is.

        Examples:
            >>> CheckpointSchedule((0, 10, 40), of=50).rescaled(10)
            CheckpointSchedule(steps=(0, 2, 8), of=10)
            >>> CheckpointSchedule.every(1, 2).rescaled(4).steps
            (0, 1, 2, 3)
        """
        return _rescale(self, checks.integer("total", total, TOTAL, least=1))

    @classmethod
    def every(cls, interval: int, total: int) -> CheckpointSchedule:
        """A checkpoint every `interval` steps of `total`.

        Examples:
            >>> CheckpointSchedule.every(3, 10).steps
            (0, 3, 6, 9)
        """
        total = checks.integer("total", total, TOTAL, least=1)
        interval = checks.integer("interval", interval, "at least 1, which recomputes at every step", least=1)
        return cls(tuple(range(0, total, interval)), total)

    @classmethod
    def fractions(cls, *fractions: float) -> CheckpointSchedule:
        """Checkpoints at fractions of the run, each at least 0 and below 1.

        Examples:
            >>> CheckpointSchedule.fractions(0.0, 0.25, 0.9).rescaled(20).steps
            (0, 5, 18)
        """
        below_one = nextafter(1, 0)
        expected = "parts of the run, each at least 0 and below 1"
        parts = checks.numbers("fractions", fractions, expected, least=0, most=below_one)
        # Rounded up, since rescaling rounds down: a third of three steps is step 1.
        return cls(tuple(min(ceil(fraction * 10**6), 10**6 - 1) for fraction in parts), 10**6)


@lru_cache
def _rescale(schedule: CheckpointSchedule, total: int) -> CheckpointSchedule:
    """Runs of one length follow one another, and checking every step of a list takes as long as all else before one."""
    if 1 < schedule.of == len(schedule.steps):
        return CheckpointSchedule.every(1, total)
    return CheckpointSchedule(tuple(step * total // schedule.of for step in schedule.steps), total)


def _paper(*steps: int) -> CheckpointSchedule:
    """The paper's lists count up to 51, but its runs have 50 steps, from 0 to 49."""
    return CheckpointSchedule(tuple(step for step in steps if step < 50), of=50)


PAPER_SCHEDULES: Mapping[str, CheckpointSchedule] = MappingProxyType(
    {
        "config_1": _paper(0, 1, 2, 3, 5, 10, 15, 25, 35),
        "config_2": _paper(0, 10, 11, 12, 15, 20, 25, 30, 35, 45),
        "config_3": _paper(0, 8, 11, 13, 20, 25, 30, 35, 45, 46, 47, 48, 49),
        "config_4": _paper(0, 9, 13, 14, 15, 28, 29, 32, 36, 45),
        "config_adaptive": _paper(0, 1, 5, 7, 10, 12, 15, 35, 40, 45, 46, 47, 48, 49, 50, 51),
        "config_five": _paper(0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50),
    }
)
"""The six schedules of the paper's Table II, for runs of 50 steps."""
