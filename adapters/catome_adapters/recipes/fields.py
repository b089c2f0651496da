"""What the fields of a recipe may hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from catome_core import checks

LEVELS = ("auto", "top", "all")


def check_levels(levels: Any) -> str | tuple[int, ...]:
    """A word, or downsampling factors."""
    if isinstance(levels, str):
        checks.one_of("levels", levels, LEVELS, " or factors such as (1, 2)")
        return levels
    factors = checks.integers("levels", levels, f"one of {LEVELS} or factors such as (1, 2)", least=1)
    if not factors:
        raise ValueError(f"levels is {levels!r}; expected at least one factor, such as (1,), or one of {LEVELS}")
    return factors


def check_stride(stride: Any) -> int | tuple[int, ...]:
    """The size of a cell."""
    expected = "a positive number for height and width, or one for each dimension"
    if isinstance(stride, Sequence):
        return checks.integers("stride", stride, expected, least=1, lengths=(2, 3))
    return checks.integer("stride", stride, expected, least=1)


def check_during(during: Any) -> tuple[float, ...] | str:
    """A part of the run."""
    expected = "two rising fractions of the run, such as (0.2, 1.0) to leave the first fifth unmerged, or 'auto'"
    if during == "auto":
        return during
    parts = checks.numbers("during", during, expected, least=0, most=1, lengths=(2,))
    if parts[0] >= parts[1]:
        raise ValueError(f"during is {during!r}; expected {expected}")
    return parts
