"""Time several ways to do the same thing in turn, so that the machine's condition is the same for all of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from statistics import quantiles
from typing import Any, NamedTuple, TypeVar

import torch

Name = TypeVar("Name")

Stopwatch = Callable[[Callable[[], object]], float]


class Subject(NamedTuple):
    """A call to time: `run` is timed, and `prepare` runs before it untimed."""

    run: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


class Timing(NamedTuple):
    """Seconds and bytes of one run, over all repeats.

    Attributes:
        median: Median of the seconds.
        low: First quartile of the seconds.
        high: Third quartile of the seconds.
        memory: Peak bytes allocated during a run, beyond those allocated before it; includes the result.
    """

    median: float
    low: float
    high: float
    memory: int


def interleave(
    subjects: Mapping[Name, Subject],
    *,
    repeats: int,
    warmup: int = 1,
    device: str | torch.device = "cpu",
    stopwatch: Stopwatch | None = None,
) -> dict[Name, Timing | Exception]:
    """Run every subject once a round, in an order that rotates from round to round.

    Args:
        subjects: By name.
        repeats: Timed rounds.
        warmup: Rounds before them.
        device: Where the subjects run.
        stopwatch: Times one call; the default uses CUDA events on a GPU and the host's clock elsewhere.

    Returns:
        For each subject its timing, or the exception it raised; a subject that raised does not run again.

    Examples:
        >>> timings = interleave({"sort": Subject(lambda: torch.rand(99).sort())}, repeats=3)
        >>> timings["sort"].low <= timings["sort"].median <= timings["sort"].high
        True
    """
    stopwatch = stopwatch or choose_stopwatch(device)
    seconds: dict[Name, list[float]] = {name: [] for name in subjects}
    failures: dict[Name, Exception] = {}
    for turn in range(warmup + repeats):
        for name in _rotate(list(subjects), turn):
            if name in failures:
                continue
            try:
                subjects[name].prepare()
                seconds[name].append(stopwatch(subjects[name].run))
            except Exception as error:
                failures[name] = error
    return {
        name: failures.get(name) or _summarize(subject, seconds[name][warmup:], device)
        for name, subject in subjects.items()
    }


def _rotate(names: Sequence[Name], turn: int) -> Iterator[Name]:
    return (names[(turn + index) % len(names)] for index in range(len(names)))


def _summarize(subject: Subject, seconds: Sequence[float], device: str | torch.device) -> Timing | Exception:
    low, median, high = quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else [*seconds] * 3
    try:
        subject.prepare()
        return Timing(median, low, high, peak_memory(subject.run, device))
    except Exception as error:
        return error


def choose_stopwatch(device: str | torch.device) -> Stopwatch:
    """CUDA events on a GPU, which count the time in which it waits for the host; elsewhere the host's clock."""
    device = torch.device(device)
    return partial(_time_events, device) if device.type == "cuda" else partial(_time_host, device)


def _time_host(device: torch.device, run: Callable[[], object]) -> float:
    start = now(device)
    run()
    return now(device) - start


def _time_events(device: torch.device, run: Callable[[], object]) -> float:
    # Events belong to the current device, which need not be the one that runs.
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000


def now(device: torch.device) -> float:
    """Seconds, after everything that was submitted to the device."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def peak_memory(run: Callable[[], object], device: str | torch.device = "cpu") -> int:
    """Peak bytes allocated during one run, beyond those allocated before it.

    Examples:
        >>> peak_memory(lambda: torch.zeros(1000).neg())
        8000
    """
    device = torch.device(device)
    return _cuda_peak(device, run) if device.type == "cuda" else _host_peak(run)


def _cuda_peak(device: torch.device, run: Callable[[], object]) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _host_peak(run: Callable[[], object]) -> int:
    # The profiler's library would log every start and stop.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = run()
    del kept
    # The profiler publishes allocations summed by operator only, without their order.
    profiler: Any = profile.profiler
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate((event.nbytes() for event in events), initial=0))
