"""What a cache stores at a checkpoint, all of it, as one function of the tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from catome_core.calls import is_captured
from catome_core.capacity import LADDER, choose_rung, count_demand
from catome_core.grid import Destination, TokenGrid, choose_destinations
from catome_core.matching import Match
from catome_core.planning import MergePlan, PlanIndex
from catome_core.policy import AdaptiveMerge

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class Recomputed(NamedTuple):
    """A plan and what it was made from.

    Attributes:
        destinations: As `choose_destinations` gives them.
        match: The match with them.
        plan: The plan, without an index.
    """

    destinations: Int[Tensor, "destinations"]
    match: Match
    plan: MergePlan


def recompute(
    policy: AdaptiveMerge,
    tokens: Float[Tensor, "batch tokens channels"],
    grid: TokenGrid,
    offsets: Int[Tensor, "destinations"],
    capacity: float | None,
    trim: bool,
) -> Recomputed:
    """Match and plan; no gradient flows. To `trim`, one number is read from the device."""
    destinations = choose_destinations(grid, offsets)
    match = policy.match(tokens, grid, destinations)
    # With "fill" there is no padding, and without a capacity nothing merges.
    if trim and policy.pads and capacity is None and not is_captured(tokens):
        capacity = choose_rung(LADDER, int(count_demand(match, policy.threshold)), grid)
    return Recomputed(destinations, match, policy.plan(match, grid, capacity, destinations))


def first_offsets(
    destination: Destination, seed: int, grid: TokenGrid, device: torch.device
) -> Int[Tensor, "destinations"]:
    """The offsets for `choose_destinations` at the first checkpoint: computed, so that no graph needs a generator."""
    cells = torch.arange(grid.destinations, device=device)
    return _scramble(cells + seed) if destination == "random" else torch.zeros_like(cells)


def next_offsets(destination: Destination, offsets: Int[Tensor, "destinations"]) -> Int[Tensor, "destinations"]:
    """The offsets at the checkpoint after the one that used `offsets`."""
    if destination == "random":
        return _scramble(offsets + 1)
    return offsets + 1 if destination == "rotate" else offsets


def offsets_at_first(
    policy: AdaptiveMerge, generator: torch.Generator | None
) -> Callable[[TokenGrid, torch.device], Tensor]:
    """The offsets of the first checkpoint, for any grid and device.

    Raises:
        ValueError: If the policy draws random destinations and there is no generator.
    """
    if policy.destination == "random" and generator is None:
        raise ValueError("destination='random' needs a generator; pass generator=torch.Generator().manual_seed(0)")
    seed = 0
    if generator is not None:
        seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    return partial(first_offsets, policy.destination, seed)


def copy_plan(plan: MergePlan) -> MergePlan:
    """The plan and its index in memory of their own: what autograd saves must not be overwritten."""
    index = None if plan.route is None else PlanIndex(*(part.clone() for part in plan.route))
    return plan.clone()._replace(route=index)


def _scramble(numbers: Tensor) -> Tensor:
    """Mix the bits of int64 numbers below 2**31 (an integer hash)."""
    for _ in range(2):
        numbers = ((numbers >> 16) ^ numbers) * 0x45D9F3B & 0x7FFFFFFF
    return (numbers >> 16) ^ numbers
