"""The pictures of the fit: the same calls with the same seeds, drawn again and again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from statistics import mean, median
from typing import Any

from torch import Tensor

from catome_adapters.recipes.calibrated import Recipe
from catome_bench.comparison.attached import attached
from catome_bench.comparison.drawing import Call, DrawnCall, draw


class Takes:
    """Every call with every seed, which are drawn once without merging.

    Attributes:
        pipe: The pipeline.
        unmerged: What was drawn without merging.
    """

    def __init__(self, pipe: Any, calls: Sequence[Call], seeds: Sequence[int]) -> None:
        self.pipe, self._calls = pipe, len(calls)
        self._takes = list(product(calls, seeds))
        # The first one loads kernels, and does not count.
        self.draw(0)
        self.unmerged = [self.draw(number) for number in range(len(self))]

    def __len__(self) -> int:
        return len(self._takes)

    @property
    def first_of_calls(self) -> list[int]:
        """The number of each call with its first seed."""
        return list(range(0, len(self), len(self) // self._calls))

    @property
    def seconds(self) -> float:
        """Of an unmerged call; the median."""
        return median(map(seconds_of, self.unmerged))

    def draw(self, number: int) -> DrawnCall:
        """Make a call.

        Raises:
            ValueError: If what is drawn is not finite.
        """
        call, seed = self._takes[number]
        try:
            return draw(self.pipe, call, seed)
        except ValueError as error:
            raise ValueError(f"seed {seed}: {error}") from error

    def error(self, drawn: Sequence[DrawnCall]) -> float:
        """Mean squared error of pictures against the unmerged ones, mean over the calls.

        Raises:
            ValueError: If they have other sizes.
        """
        pairs = zip(drawn, self.unmerged, strict=True)
        return mean(_squared_error(one.pictures, other.pictures) for one, other in pairs)

    def race(self, recipe: Recipe) -> tuple[float, float]:
        """Make all calls with a recipe, each right after one without: the error, and the median speed-up."""
        merged: list[DrawnCall] = []
        ratios: list[float] = []
        for number in range(len(self)):
            unmerged = self.draw(number)
            with attached(self.pipe, recipe):
                merged.append(self.draw(number))
            ratios.append(unmerged.seconds / merged[-1].seconds)
        return self.error(merged), median(ratios)


def seconds_of(drawn: DrawnCall) -> float:
    """Seconds of a call."""
    return drawn.seconds * len(drawn.pictures)


def _squared_error(pictures: Tensor, unmerged: Tensor) -> float:
    if pictures.shape != unmerged.shape:
        raise ValueError(f"drew {tuple(pictures.shape)}, unmerged {tuple(unmerged.shape)}; expected one size")
    return (pictures - unmerged).double().square().mean().item()
