"""From a match to a merge plan: which sources merge, which are kept, and the slot of every token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from catome_core import checks
from catome_core.grid import TokenGrid, choose_destinations, source_positions
from catome_core.matching import Match

if TYPE_CHECKING:
    from jaxtyping import Int

Spare = Literal["pad", "fill"]


class PlanIndex(NamedTuple):
    """The plan's index in both directions, flattened over the batch: what `merge` and `unmerge` gather by.

    `rows` and `offsets` are the arguments of `torch.nn.functional.embedding_bag`. All are int64.

    Attributes:
        rows: The tokens, slot by slot.
        offsets: Where the tokens of each slot begin in `rows`.
        inverse: The slot of each token.
    """

    rows: Int[Tensor, "batch*tokens"]
    offsets: Int[Tensor, "batch*slots"]
    inverse: Int[Tensor, "batch*tokens"]


class MergePlan(NamedTuple):
    """A function from tokens to slots. Slots are the prefix tokens, then the destinations, then kept sources.

    All tensors are int64. A plan of batch 1 serves any batch.

    Attributes:
        slot: The slot that each token is averaged into.
        size: Tokens per slot; 0 marks padding.
        anchor: The token whose position the slot carries; 0 in padding.
        route: The plan's index in both directions, precomputed by `PairCache`; None: `merge` and `unmerge` compute it
            at each call.

    Examples:
        >>> plan = MergePlan(torch.tensor([[0, 0, 1]]), torch.tensor([[2, 1]]), torch.tensor([[0, 2]]))
        >>> plan.clone().slot.data_ptr() == plan.slot.data_ptr()
        False
        >>> plan.to("meta").anchor.device
        device(type='meta')
    """

    slot: Int[Tensor, "batch tokens"]
    size: Int[Tensor, "batch slots"]
    anchor: Int[Tensor, "batch slots"]
    route: PlanIndex | None = None

    def clone(self) -> MergePlan:
        """A copy in memory of its own, without the index, which is larger than the plan and quickly made."""
        return MergePlan(self.slot.clone(), self.size.clone(), self.anchor.clone())

    def to(self, device: torch.device | str) -> MergePlan:
        """The same plan on another device."""
        index = None if self.route is None else PlanIndex(*(part.to(device) for part in self.route))
        return MergePlan(self.slot.to(device), self.size.to(device), self.anchor.to(device), index)


def plan_merge(
    match: Match,
    grid: TokenGrid,
    *,
    threshold: float,
    capacity: float | None = None,
    spare: Spare = "pad",
    destinations: Int[Tensor, "destinations"] | None = None,
) -> MergePlan:
    """Merge every source above the threshold into its destination, keep the others (paper, III-A).

    The number of slots depends on `grid` and `capacity` alone, never on the data. If more sources are not above the
    threshold than there are kept slots, the most similar of them merge anyway: see `count_overflow`.

    Args:
        match: From `match_tokens`.
        grid: The layout the match was made for.
        threshold: Sources with a cosine similarity above it merge. 1 and more: none does. -1: capacity alone decides.
        capacity: Kept slots as a fraction of the grid's tokens; None means one for every source.
        spare: What becomes of kept slots that no source needs: "pad" leaves them empty; "fill" gives them to the least
            similar of the mergeable sources, so that there is no padding.
        destinations: The ones that `match_tokens` was given.

    Returns:
        A `MergePlan` with prefix + destinations + kept slots.

    Raises:
        TypeError: If the threshold or the capacity is not a number.
        ValueError: If an argument is out of range or the match belongs to another grid.

    Examples:
        >>> match = Match(torch.tensor([[0.9, 0.2]]), torch.tensor([[0, 1]]))
        >>> slot, size, anchor, _ = plan_merge(match, TokenGrid((1, 4)), threshold=0.7)
        >>> slot, size, anchor
        (tensor([[0, 0, 1, 2]]), tensor([[2, 1, 1, 0]]), tensor([[0, 2, 3, 0]]))
    """
    _check(match, grid, threshold, capacity, spare)
    room = grid.kept(capacity)
    limit = torch.full_like(match.target[:, :1], room)
    if spare == "pad":
        limit = count_unmergeable(match, threshold)[:, None].clamp_max(room)
    is_kept = _rank(match.score) < limit
    if destinations is None:
        destinations = choose_destinations(grid, device=match.target.device)
    return _lay_out(match.target, is_kept, grid, room, destinations)


def count_unmergeable(match: Match, threshold: float) -> Int[Tensor, "batch"]:
    """Sources of each sample that are not above the threshold, int64: the kept slots that it needs.

    Examples:
        >>> match = Match(torch.tensor([[0.9, 0.2]]), torch.tensor([[0, 1]]))
        >>> count_unmergeable(match, 0.7)
        tensor([1])
    """
    return (match.score <= threshold).sum(-1)


def count_overflow(
    match: Match, grid: TokenGrid, *, threshold: float, capacity: float | None = None
) -> Int[Tensor, "batch"]:
    """Sources of each sample, int64, that merge without being above the threshold because kept slots are too few.

    Examples:
        >>> match = Match(torch.tensor([[0.9, 0.2]]), torch.tensor([[0, 1]]))
        >>> count_overflow(match, TokenGrid((1, 4)), threshold=0.95, capacity=0.25)
        tensor([1])
    """
    threshold, capacity = check_policy(threshold, capacity)
    return (count_unmergeable(match, threshold) - grid.kept(capacity)).clamp_min(0)


def _rank(score: Tensor) -> Tensor:
    """Rank of each source, least similar first, raster order among equals."""
    order = score.argsort(dim=-1, stable=True)
    ranks = torch.arange(score.shape[-1], device=score.device).expand_as(order)
    return torch.empty_like(order).scatter(-1, order, ranks)


def _lay_out(target: Tensor, is_kept: Tensor, grid: TokenGrid, room: int, destinations: Tensor) -> MergePlan:
    """Number the slots. `target` (int64) and `is_kept` (bool) are (batch, sources); `room` counts the kept slots."""
    batch, first = len(target), grid.prefix + grid.destinations
    rank = is_kept.cumsum(-1) - 1
    prefix = torch.arange(grid.prefix, device=target.device)
    fixed = torch.cat([prefix, grid.prefix + destinations])
    sources = grid.prefix + source_positions(grid, destinations)
    slots = torch.where(is_kept, first + rank, grid.prefix + target)
    slot = target.new_empty(batch, grid.tokens)
    slot = slot.index_copy(1, fixed, torch.arange(first, device=target.device).expand(batch, -1))
    slot = slot.index_copy(1, sources, slots)
    size = target.new_zeros(batch, first + room).scatter_add(1, slot, torch.ones_like(slot))
    # One kept slot too many takes the anchors of merged sources and is cut off.
    anchors = target.new_zeros(batch, room + 1).scatter(1, rank.where(is_kept, room), sources.expand(batch, -1))
    return MergePlan(slot, size, torch.cat([fixed.expand(batch, -1), anchors[:, :room]], 1))


def index_plan(plan: MergePlan, batch: int) -> PlanIndex:
    """Turn a plan around for a batch of this many samples; a plan of batch 1 serves them all.

    Examples:
        >>> plan = MergePlan(torch.tensor([[0, 1, 0]]), torch.tensor([[2, 1]]), torch.tensor([[0, 1]]))
        >>> index = index_plan(plan, 2)
        >>> index.rows.tolist(), index.offsets.tolist(), index.inverse.tolist()
        ([0, 2, 1, 3, 5, 4], [0, 2, 3, 5], [0, 1, 0, 2, 3, 2])
    """
    tokens, slots = plan.slot.shape[1], plan.size.shape[1]
    sample = torch.arange(batch, device=plan.slot.device)[:, None]
    # A stable order makes sums the same from run to run.
    rows = plan.slot.argsort(dim=-1, stable=True) + sample * tokens
    offsets = plan.size.cumsum(-1) - plan.size + sample * tokens
    return PlanIndex(rows.flatten(), offsets.flatten(), (plan.slot + sample * slots).flatten())


def _check(match: Match, grid: TokenGrid, threshold: float, capacity: float | None, spare: str) -> None:
    check_policy(threshold, capacity, spare)
    if not torch.compiler.is_compiling() and match.score.shape[1:] != (grid.sources,):
        raise ValueError(
            f"match has shape {tuple(match.score.shape)}; {grid} has {grid.sources} sources: "
            "match and plan with the same grid"
        )


def check_policy(threshold: float, capacity: float | None, spare: str = "pad") -> tuple[float, float | None]:
    """Threshold and capacity as numbers; TypeError or ValueError unless all three are what they should be."""
    checks.one_of("spare", spare, ("pad", "fill"))
    expected = "a cosine similarity, such as 0.7, and not below -1"
    return checks.number("threshold", threshold, expected, least=-1), checks.capacity(capacity)
