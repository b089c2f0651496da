"""Time several ways to do the same thing side by side, so that all of them meet the same machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from statistics import quantiles
from typing import NamedTuple

import torch

Stopwatch = Callable[[Callable[[], object]], float]


class Subject(NamedTuple):
    """What is timed: `run`, after `prepare`, which is not."""

    run: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


class Timing(NamedTuple):
    """Seconds of one run over the repeats, and bytes.

    Attributes:
        median: Of the repeats.
        low: Their first quartile.
        high: Their third quartile.
        memory: The most that a run has allocated at any moment beyond what was there before it, its result included.
    """

    median: float
    low: float
    high: float
    memory: int


def interleave(
    subjects: Mapping[str, Subject],
    *,
    repeats: int,
    warmup: int = 1,
    device: str | torch.device = "cpu",
    stopwatch: Stopwatch | None = None,
) -> dict[str, Timing | Exception]:
    """Run every subject once a round, in an order that rotates from round to round.

    Args:
        subjects: By name.
        repeats: Timed rounds.
        warmup: Rounds before them.
        device: Where the subjects run.
        stopwatch: Times one call; by default the device's own clock.

    Returns:
        A timing for each subject, or what it raised; a subject that raised does not run again.

    Examples:
        >>> timings = interleave({"sort": Subject(lambda: torch.rand(99).sort())}, repeats=3)
        >>> timings["sort"].low <= timings["sort"].median <= timings["sort"].high
        True
    """
    stopwatch = stopwatch or choose_stopwatch(device)
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    failures: dict[str, Exception] = {}
    for turn in range(warmup + repeats):
        for name in _rotate(list(subjects), turn):
            if name not in failures:
                _attempt(name, subjects[name], stopwatch, seconds[name], failures)
    return {
        name: failures.get(name) or _summarize(subject, seconds[name][warmup:], device)
        for name, subject in subjects.items()
    }


def _attempt(
    name: str, subject: Subject, stopwatch: Stopwatch, seconds: list[float], failures: dict[str, Exception]
) -> None:
    try:
        subject.prepare()
        seconds.append(stopwatch(subject.run))
    except Exception as error:
        failures[name] = error


def _rotate(names: Sequence[str], turn: int) -> Iterator[str]:
    return (names[(turn + index) % len(names)] for index in range(len(names)))


def _summarize(subject: Subject, seconds: Sequence[float], device: str | torch.device) -> Timing | Exception:
    low, median, high = quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else [*seconds] * 3
    try:
        subject.prepare()
        return Timing(median, low, high, peak_memory(subject.run, device))
    except Exception as error:
        return error


def choose_stopwatch(device: str | torch.device) -> Stopwatch:
    """CUDA events on a GPU, which does not wait for the host; elsewhere the host's clock."""
    return _time_events if torch.device(device).type == "cuda" else _time_host


def _time_host(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _time_events(run: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def peak_memory(run: Callable[[], object], device: str | torch.device = "cpu") -> int:
    """Bytes that one run has allocated at its worst moment, beyond what was there before.

    Examples:
        >>> peak_memory(lambda: torch.zeros(1000).neg())
        8000
    """
    return _cuda_peak(run) if torch.device(device).type == "cuda" else _host_peak(run)


def _cuda_peak(run: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _host_peak(run: Callable[[], object]) -> int:
    # The profiler's library tells the world of every start and stop.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = run()
    del kept
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate((event.nbytes() for event in events), initial=0))
