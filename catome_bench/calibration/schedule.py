"""The checkpoints whose pairs are nearest to the own pairs of all steps, by dynamic programming."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from catome_core import CheckpointSchedule


class Checkpoints(NamedTuple):
    """The best ones of their number.

    Attributes:
        distance: Sum over all steps, of the distance between a step's own pairs and those that it uses.
        steps: The first is 0.
    """

    distance: float
    steps: tuple[int, ...]


def choose_schedule(distance: Tensor) -> CheckpointSchedule:
    """The schedule at the elbow: its number of checkpoints lies farthest below the average.

    The average is the straight line from one checkpoint to one in every step, so that each checkpoint up to the elbow
    brings more than the average one, and each one after it less. Of equal numbers, the smallest.

    Args:
        distance: Float (steps, steps), as for `best_checkpoints`.

    Examples:
        >>> two_halves = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]])
        >>> choose_schedule(two_halves)
        CheckpointSchedule(steps=(0, 2), of=4)
    """
    best = best_checkpoints(distance)
    steps, first = len(best), best[0].distance

    def below_average(number: int) -> float:
        return first * (steps - number) / max(1, steps - 1) - best[number - 1].distance

    return CheckpointSchedule(best[max(range(1, steps + 1), key=below_average) - 1].steps, steps)


def best_checkpoints(distance: Tensor) -> list[Checkpoints]:
    """The best checkpoints for every number of them, from one to as many as there are steps.

    Args:
        distance: Float (steps, steps), how far the pairs of one step are from those of another.

    Examples:
        >>> best_checkpoints(torch.tensor([[0.0, 0.1, 0.5], [0.1, 0.0, 0.4], [0.5, 0.4, 0.0]]))[1].steps
        (0, 2)
    """
    steps = len(distance)
    # cost[i, j]: the steps from i to j - 1 use the pairs of i.
    cost = torch.full((steps, steps + 1), float("inf"), dtype=torch.float64)
    later = torch.ones(steps, steps).triu().bool()
    cost[:, 1:][later] = distance.double().triu().cumsum(1)[later]
    totals, before = cost[0], []
    found = [_trace(totals, before)]
    for _ in range(1, steps):
        # The last checkpoint is i; those before it are the best for the steps up to i - 1.
        totals, last = (totals[:steps, None] + cost).min(0)
        before.append(last)
        found.append(_trace(totals, before))
    return found


def _trace(totals: Tensor, before: list[Tensor]) -> Checkpoints:
    """The checkpoints of a run, from its end; `before` has the last one, for every number and every end."""
    end, steps = len(totals) - 1, []
    for last in reversed(before):
        end = int(last[end])
        steps.append(end)
    return Checkpoints(totals[-1].item(), (0, *reversed(steps)))
