"""What the fields of a recipe may hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any

from catome_core import AdaptiveMerge, Lattice, checks

LEVELS = ("auto", "top", "all")
Stride = int | tuple[int, ...]
"""The size of a cell: of height and width, or of each dimension."""


def check_levels(levels: Any) -> str | tuple[int, ...]:
    """A word, or downsampling factors."""
    if isinstance(levels, str):
        checks.one_of("levels", levels, LEVELS, " or factors such as (1, 2)")
        return levels
    factors = checks.integers("levels", levels, f"one of {LEVELS} or factors such as (1, 2)", least=1)
    if not factors:
        raise ValueError(f"levels is {levels!r}; expected at least one factor, such as (1,), or one of {LEVELS}")
    return factors


def check_stride(stride: Any, name: str = "stride") -> Stride:
    """The size of a cell."""
    expected = "a positive number for height and width, or one for each dimension"
    if isinstance(stride, Sequence):
        return checks.integers(name, stride, expected, least=1, lengths=(2, 3))
    return checks.integer(name, stride, expected, least=1)


def check_later(later: Any) -> tuple[tuple[float, Stride], ...]:
    """The cells after the first steps that merge."""
    expected = "pairs of a rising fraction of `during` and the stride from there on, such as ((0.25, (2, 4)),)"
    pairs: list[tuple[float, Stride]] = []
    for number, pair in enumerate(checks.items("later", later, expected)):
        begin, stride = checks.items(f"later[{number}]", pair, expected, lengths=(2,))
        begin = checks.number(f"later[{number}][0]", begin, "a fraction of `during`, in (0, 1)", least=0, most=1)
        pairs.append((begin, check_stride(stride, f"later[{number}][1]")))
    begins = [0.0, *(begin for begin, _ in pairs), 1.0]
    if any(one >= other for one, other in pairwise(begins)):
        raise ValueError(f"later is {later!r}; expected {expected}")
    return tuple(pairs)


def check_during(during: Any) -> tuple[float, ...] | str:
    """A part of the run."""
    expected = "two rising fractions of the run, such as (0.2, 1.0) to leave the first fifth unmerged, or 'auto'"
    if during == "auto":
        return during
    parts = checks.numbers("during", during, expected, least=0, most=1, lengths=(2,))
    if parts[0] >= parts[1]:
        raise ValueError(f"during is {during!r}; expected {expected}")
    return parts


def kind_of_policy(values: Any) -> type[AdaptiveMerge | Lattice]:
    """Of the fields of a policy; the kinds have none in common."""
    is_lattice = isinstance(values, dict) and any(one.name in values for one in fields(Lattice))
    return Lattice if is_lattice else AdaptiveMerge
