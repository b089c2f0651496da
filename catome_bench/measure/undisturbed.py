"""The time of a run on a machine that does something else now and then."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def undisturbed(runs: Iterable[Sequence[float]]) -> float:
    """Seconds of a run if every step takes as long as in the fastest of these: what else runs only adds time.

    Args:
        runs: The seconds of each step, as many in each run.

    Examples:
        >>> undisturbed([[1.0, 9.0], [4.0, 2.0]])
        3.0
    """
    return sum(map(min, zip(*runs, strict=True)))
