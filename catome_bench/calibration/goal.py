"""What a calibrated recipe shall reach: a fidelity, or a speed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from catome_bench.calibration.choose import Choice


class Outcome(NamedTuple):
    """A choice that was drawn with.

    Attributes:
        choice: What it was predicted to do.
        error: Mean squared error of its pictures.
        speedup: Of a call of the pipeline, median.
    """

    choice: Choice
    error: float
    speedup: float


class Goal(Protocol):
    """What is to be reached, and what for."""

    def pick(self, choices: Sequence[Choice], off: float) -> Choice:
        """The best choice if what counts comes out `off` times its prediction; the closest, if none reaches it."""
        ...

    def off(self, outcome: Outcome) -> float:
        """How many times its prediction what counts came out."""
        ...

    def is_met(self, outcome: Outcome) -> bool:
        """Whether the pictures of the fit reach it."""
        ...

    def merit(self, outcome: Outcome) -> tuple[bool, float]:
        """What is highest for the outcome to keep."""
        ...


class Fidelity(NamedTuple):
    """As fast as possible at this PSNR, in dB, of the mean squared error."""

    psnr: float

    def pick(self, choices: Sequence[Choice], off: float) -> Choice:
        """The fastest of those whose error is small enough."""
        _, first, *_ = choices
        within = [one for one in choices if one.effects and one.error * off <= self._error]
        return within[-1] if within else first

    def off(self, outcome: Outcome) -> float:
        """Of the error."""
        return outcome.error / outcome.choice.error if outcome.choice.error else 1.0

    def is_met(self, outcome: Outcome) -> bool:
        """Whether the error is small enough."""
        return outcome.error <= self._error

    def merit(self, outcome: Outcome) -> tuple[bool, float]:
        """The fastest that meets it, else the closest picture."""
        met = self.is_met(outcome)
        return met, outcome.choice.saved if met else -outcome.error

    @property
    def _error(self) -> float:
        return 10 ** (-self.psnr / 10)

    def __str__(self) -> str:
        return f"{self.psnr:g} dB"


class Speed(NamedTuple):
    """As close as possible at this speed-up, of a pipeline that takes `seconds` without merging."""

    speedup: float
    seconds: float

    def pick(self, choices: Sequence[Choice], off: float) -> Choice:
        """The closest of those that save enough."""
        enough = (one for one in choices if one.effects and one.saved * off >= self._saving)
        return next(enough, choices[-1])

    def off(self, outcome: Outcome) -> float:
        """Of the seconds saved."""
        return self.seconds * (1 - 1 / outcome.speedup) / outcome.choice.saved

    def is_met(self, outcome: Outcome) -> bool:
        """Whether it is fast enough."""
        return outcome.speedup >= self.speedup

    def merit(self, outcome: Outcome) -> tuple[bool, float]:
        """The closest picture that meets it, else the fastest."""
        met = self.is_met(outcome)
        return met, -outcome.error if met else outcome.speedup

    @property
    def _saving(self) -> float:
        return self.seconds * (1 - 1 / self.speedup)

    def __str__(self) -> str:
        return f"{self.speedup:g}x"


def psnr_of(error: float) -> float:
    """PSNR in dB of a mean squared error of pictures in [0, 1]; inf if there is none.

    Examples:
        >>> psnr_of(1e-4), psnr_of(0.0)
        (40.0, inf)
    """
    return -10 * math.log10(error) if error else math.inf


def speedup_of(saved: float, seconds: float) -> float:
    """Of a call that takes `seconds`, and saves some of them.

    Examples:
        >>> speedup_of(1.0, 4.0)
        1.3333333333333333
    """
    return seconds / max(seconds - saved, 0.01 * seconds)
