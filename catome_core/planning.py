"""From a match to a merge plan: which sources merge, which are kept, and where every token goes."""

from __future__ import annotations

from math import isnan
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from catome_core.grid import TokenGrid, choose_destinations, source_positions
from catome_core.matching import Match

Spare = Literal["pad", "fill"]


class Route(NamedTuple):
    """A plan turned round: where merging and unmerging read, all samples of the batch laid end to end.

    Attributes:
        rows: int64 (batch * tokens,), the tokens slot by slot.
        starts: int64 (batch * slots,), where the tokens of each slot begin in `rows`.
        back: int64 (batch * tokens,), the slot of each token.
    """

    rows: Tensor
    starts: Tensor
    back: Tensor


class MergePlan(NamedTuple):
    """A function from tokens to slots. Slots are the prefix tokens, then the destinations, then the kept places.

    Attributes:
        slot: int64 (batch, tokens), the slot that each token is averaged into.
        size: int64 (batch, slots), tokens per slot; 0 marks padding.
        anchor: int64 (batch, slots), the token whose position the slot carries; 0 in padding.
        route: The index work of `merge` and `unmerge`, where somebody has done it in advance (`PairCache` does).
    """

    slot: Tensor
    size: Tensor
    anchor: Tensor
    route: Route | None = None


def plan_merge(
    match: Match,
    grid: TokenGrid,
    *,
    threshold: float,
    capacity: float | None = None,
    spare: Spare = "pad",
    destinations: Tensor | None = None,
) -> MergePlan:
    """Merge every source above the threshold into its destination, keep the others (paper, III-A).

    The number of slots depends on `grid` and `capacity` alone, never on the data. If more sources than there are
    places want to be kept, the most similar of them merge anyway: see `count_overflow`.

    Args:
        match: From `match_tokens`.
        grid: The layout the match was made for.
        threshold: Sources with a cosine similarity above it merge. 1 and more: none does. -1: capacity alone decides.
        capacity: Kept places as a fraction of the grid's tokens; None means one for every source.
        spare: What becomes of places that no source needs: "pad" leaves them empty; "fill" gives them to
            the least similar of the mergeable sources, so that there is no padding.
        destinations: Those that `match_tokens` was given.

    Returns:
        A `MergePlan` with prefix + destinations + places slots.

    Raises:
        ValueError: If an argument is out of range or the match belongs to another grid.

    Examples:
        >>> match = Match(torch.tensor([[0.9, 0.2]]), torch.tensor([[0, 1]]))
        >>> slot, size, anchor, _ = plan_merge(match, TokenGrid((1, 4)), threshold=0.7)
        >>> slot, size, anchor
        (tensor([[0, 0, 1, 2]]), tensor([[2, 1, 1, 0]]), tensor([[0, 2, 3, 0]]))
    """
    _check(match, grid, threshold, capacity, spare)
    places = grid.places(capacity)
    limit = torch.full_like(match.target[:, :1], places)
    if spare == "pad":
        limit = wanted_places(match, threshold)[:, None].clamp_max(places)
    kept = _rank(match.score) < limit
    if destinations is None:
        destinations = choose_destinations(grid, device=match.target.device)
    return _lay_out(match.target, kept, grid, places, destinations)


def wanted_places(match: Match, threshold: float) -> Tensor:
    """Sources of each sample that are not above the threshold: int64 (batch,)."""
    return (match.score <= threshold).sum(-1)


def count_overflow(match: Match, grid: TokenGrid, *, threshold: float, capacity: float | None = None) -> Tensor:
    """Sources of each sample that merge without being above the threshold, for want of places: int64 (batch,).

    Examples:
        >>> match = Match(torch.tensor([[0.9, 0.2]]), torch.tensor([[0, 1]]))
        >>> count_overflow(match, TokenGrid((1, 4)), threshold=0.95, capacity=0.25)
        tensor([1])
    """
    return (wanted_places(match, threshold) - grid.places(capacity)).clamp_min(0)


def _rank(score: Tensor) -> Tensor:
    """Rank of each source, least similar first, raster order among equals."""
    order = score.argsort(dim=-1, stable=True)
    ranks = torch.arange(score.shape[-1], device=score.device).expand_as(order)
    return torch.empty_like(order).scatter(-1, order, ranks)


def _lay_out(target: Tensor, kept: Tensor, grid: TokenGrid, places: int, destinations: Tensor) -> MergePlan:
    batch, first = len(target), grid.prefix + grid.destinations
    place = kept.cumsum(-1) - 1
    prefix = torch.arange(grid.prefix, device=target.device)
    fixed = torch.cat([prefix, grid.prefix + destinations])
    sources = grid.prefix + source_positions(grid, destinations)
    slots = torch.where(kept, first + place, grid.prefix + target)
    slot = target.new_empty(batch, grid.tokens)
    slot = slot.index_copy(1, fixed, torch.arange(first, device=target.device).expand(batch, -1))
    slot = slot.index_copy(1, sources, slots)
    size = target.new_zeros(batch, first + places).scatter_add(1, slot, torch.ones_like(slot))
    # One place too many takes the anchors of merged sources and is cut off.
    anchors = target.new_zeros(batch, places + 1).scatter(1, place.where(kept, places), sources.expand(batch, -1))
    return MergePlan(slot, size, torch.cat([fixed.expand(batch, -1), anchors[:, :places]], 1))


def find_route(plan: MergePlan, batch: int) -> Route:
    """Turn a plan round for a batch of so many samples; a plan of batch 1 serves them all.

    Examples:
        >>> plan = MergePlan(torch.tensor([[0, 1, 0]]), torch.tensor([[2, 1]]), torch.tensor([[0, 1]]))
        >>> route = find_route(plan, 2)
        >>> route.rows.tolist(), route.starts.tolist(), route.back.tolist()
        ([0, 2, 1, 3, 5, 4], [0, 2, 3, 5], [0, 1, 0, 2, 3, 2])
    """
    tokens, slots = plan.slot.shape[1], plan.size.shape[1]
    sample = torch.arange(batch, device=plan.slot.device)[:, None]
    # A stable order makes sums the same from run to run.
    rows = plan.slot.argsort(dim=-1, stable=True) + sample * tokens
    starts = plan.size.cumsum(-1) - plan.size + sample * tokens
    return Route(rows.flatten(), starts.flatten(), (plan.slot + sample * slots).flatten())


def _check(match: Match, grid: TokenGrid, threshold: float, capacity: float | None, spare: str) -> None:
    check_policy(threshold, capacity, spare)
    if not torch.compiler.is_compiling() and match.score.shape[1:] != (grid.sources,):
        raise ValueError(
            f"match has shape {tuple(match.score.shape)}; {grid} has {grid.sources} sources: "
            "match and plan with the same grid"
        )


def check_policy(threshold: float, capacity: float | None, spare: str) -> None:
    """Raise ValueError unless the three are in range."""
    if isnan(threshold):
        raise ValueError("threshold is NaN; expected a cosine similarity, such as 0.7")
    if capacity is not None and not 0 <= capacity <= 1:
        raise ValueError(
            f"capacity is {capacity}; expected a fraction of the tokens from 0 to 1, or None: a place for every source"
        )
    if spare not in ("pad", "fill"):
        raise ValueError(f"spare is {spare!r}; expected 'pad' (empty places, masked) or 'fill' (no padding)")
