"""The seconds that blocks take, call by call, and what happened to their tokens in each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from catome_adapters import SiteStep
from catome_bench.measure.timing import now

UNMERGED, CHECKPOINT, REUSE = "unmerged", "checkpoint", "reuse"
"""What a step does with a group's tokens; steps of one kind take equally long."""

Samples = Mapping[str, Sequence[float]]
"""The seconds of calls of a network, in the blocks of a group, by what their step does."""


@contextmanager
def timed_blocks(blocks: Sequence[nn.Module], device: torch.device) -> Iterator[list[list[float]]]:
    """The seconds of every call of each block while the context lasts, with what is attached to it by then."""
    calls: list[list[float]] = [[] for _ in blocks]
    with ExitStack() as hooks:
        for block, seconds in zip(blocks, calls, strict=True):
            for handle in _time(block, seconds, device):
                hooks.callback(handle.remove)
        yield calls


def _time(block: nn.Module, seconds: list[float], device: torch.device) -> tuple[RemovableHandle, ...]:
    def begin(*_: object) -> None:
        seconds.append(-now(device))

    def end(*_: object) -> None:
        seconds[-1] += now(device)

    # Around the hooks that are there: merging counts.
    return block.register_forward_pre_hook(begin, prepend=True), block.register_forward_hook(end)


def seconds_by_call(calls: Sequence[Sequence[float]]) -> list[float]:
    """The seconds of all blocks in each call of their network.

    Examples:
        >>> seconds_by_call([[1.0, 2.0], [3.0, 4.0]])
        [4.0, 6.0]
    """
    return [sum(blocks) for blocks in zip(*calls, strict=True)]


def kinds_of_steps(rows: Sequence[SiteStep]) -> list[str]:
    """What each step of a run did, in their order, by what a session has recorded of the group's sites."""
    by_step: dict[int, list[SiteStep]] = defaultdict(list)
    for row in rows:
        by_step[row.step].append(row)
    return [_kind(by_step[step]) for step in sorted(by_step)]


def by_kind(by_call: Sequence[float], kinds: Sequence[str]) -> dict[str, list[float]]:
    """The seconds of a run's calls by what their steps did; every step makes as many calls.

    Examples:
        >>> by_kind([3.0, 1.0, 1.5, 9.0], ["checkpoint", "reuse", "reuse", "unmerged"])
        {'checkpoint': [3.0], 'reuse': [1.0, 1.5], 'unmerged': [9.0]}
    """
    found: dict[str, list[float]] = defaultdict(list)
    for index, seconds in enumerate(by_call):
        found[kinds[index * len(kinds) // len(by_call)]].append(seconds)
    return dict(found)


def _kind(rows: Sequence[SiteStep]) -> str:
    if not any(row.merged_fraction for row in rows):
        return UNMERGED
    return CHECKPOINT if any(row.checkpoint for row in rows) else REUSE
