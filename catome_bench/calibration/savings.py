"""What merging saves of the seconds of a picture, on a machine that does something else now and then.

What else a machine does only adds time, in one hour more than in another. So every group of blocks is timed in every
picture: where the tokens of one group merge, the others say how slow the machine was.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from catome_bench.calibration.clock import UNMERGED, Samples
from catome_bench.measure.spread import quantile

BlockSeconds = Mapping[str, Samples]
"""The seconds of one call of the pipeline, by group."""


def usual_seconds(pictures: Sequence[BlockSeconds]) -> dict[str, float]:
    """The seconds of an unmerged call in each group: the first decile over all pictures of one call and seed.

    Examples:
        >>> usual_seconds([{"up": {"reuse": [1.0]}}, {"up": {"unmerged": [9.0, 2.0]}}])
        {'up': 2.0}
    """
    seconds: dict[str, list[float]] = defaultdict(list)
    for picture in pictures:
        for group, samples in picture.items():
            seconds[group] += samples.get(UNMERGED, ())
    return {group: _first_decile(calls) for group, calls in seconds.items() if calls}


def slowness(picture: BlockSeconds, group: str, usual: Mapping[str, float]) -> float:
    """How many times their usual seconds the blocks of all groups but one took; 1 where there are no others.

    Examples:
        >>> slowness({"up": {"reuse": [1.0]}, "mid": {"unmerged": [3.0]}}, "up", {"up": 2.0, "mid": 2.0})
        1.5
    """
    # A network that this call never ran has no calls.
    others = [name for name, calls in picture.items() if name != group and UNMERGED in calls and name in usual]
    took = sum(_first_decile(picture[name][UNMERGED]) for name in others)
    return took / sum(usual[name] for name in others) if others else 1.0


def seconds_saved(
    group: str, picture: BlockSeconds, pictures: Sequence[BlockSeconds], usual: Mapping[str, float]
) -> float:
    """What merging in one group saves in a picture.

    Each kind of call counts with the first decile over pictures, after each was divided by its slowness.

    Args:
        group: Where tokens merge.
        picture: The one.
        pictures: All with the same setting, in whatever parts of the run, of the same call and seed.
        usual: The seconds of an unmerged call in each group.

    Examples:
        >>> picture = {"up": {"reuse": [2.0, 3.0, 16.0], "unmerged": [9.0]}, "mid": {"unmerged": [8.0, 8.0]}}
        >>> seconds_saved("up", picture, [picture], {"up": 3.0, "mid": 4.0})  # twice as slow: reuse takes 1.0
        6.0
    """
    calls: dict[str, list[float]] = defaultdict(list)
    for one in pictures:
        slow = slowness(one, group, usual)
        for kind, seconds in one[group].items():
            calls[kind] += [each / slow for each in seconds]
    merged = {kind: len(seconds) for kind, seconds in picture[group].items() if kind != UNMERGED}
    return sum(count * (usual[group] - _first_decile(calls[kind])) for kind, count in merged.items())


def _first_decile(seconds: Sequence[float]) -> float:
    return quantile(seconds, 0.1)
