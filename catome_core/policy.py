"""How to merge, as one value: from tokens to a plan without state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from torch import Tensor

from catome_core import checks
from catome_core.grid import Destination, TokenGrid
from catome_core.matching import Match, check_radius, match_tokens
from catome_core.planning import MergePlan, Spare, check_policy, plan_merge

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True)
class AdaptiveMerge:
    """Adaptive token merging (paper, III-A): a stateless function from tokens to a merge plan.

    Args:
        threshold: Sources with a cosine similarity above it merge; the paper's choice is 0.7. With -1 all may, so the
            capacity alone decides (ToMe); with 1 or more none does.
        capacity: Kept slots as a fraction of the grid's tokens; None means one for every source.
        radius: Match only with cells at most `radius` cells away; None matches everywhere (paper).
        spare: "pad" leaves unneeded kept slots empty (the paper's threshold exactly), "fill" uses them.
        shared: One plan for the whole batch.
        destination: Which token of a cell the others merge into: "top-left" (paper), "random", or "rotate", which moves
            on at every checkpoint. `PairCache` chooses the last two; a bare call takes them as an argument.

    Raises:
        TypeError: If a value has another type; True and "0.7" are not numbers.
        ValueError: If a value is out of range.

    Examples:
        >>> import torch
        >>> policy = AdaptiveMerge(threshold=0.5)
        >>> plan = policy(torch.tensor([[[1.0], [2.0], [3.0], [-1.0]]]), TokenGrid((2, 2)))
        >>> plan.slot
        tensor([[0, 0, 0, 1]])
    """

    threshold: float = 0.7
    capacity: float | None = None
    radius: int | None = None
    spare: Spare = "pad"
    shared: bool = False
    destination: Destination = "top-left"

    def __post_init__(self) -> None:
        threshold, capacity = check_policy(self.threshold, self.capacity, self.spare)
        for name, value in {"threshold": threshold, "capacity": capacity, "radius": check_radius(self.radius)}.items():
            object.__setattr__(self, name, value)
        checks.flag("shared", self.shared)
        checks.one_of("destination", self.destination, get_args(Destination))

    @property
    def adapts(self) -> bool:
        """Whether the data decides the number of slots."""
        return self.capacity is None

    @property
    def pads(self) -> bool:
        """Whether slots may be empty, so that attention needs a mask."""
        return self.spare == "pad"

    def __call__(
        self,
        tokens: Float[Tensor, "batch tokens channels"],
        grid: TokenGrid,
        destinations: Int[Tensor, "destinations"] | None = None,
    ) -> MergePlan:
        """Plan the merge of these tokens.

        Raises:
            ValueError: If the tokens do not fit the grid, or the policy needs `destinations` and has none.
        """
        if destinations is None and self.destination != "top-left":
            raise ValueError(
                f"destination={self.destination!r} has no state here; pass destinations=choose_destinations(grid, ...) "
                "or use PairCache"
            )
        return self.plan(self.match(tokens, grid, destinations), grid, self.capacity, destinations)

    def match(
        self,
        tokens: Float[Tensor, "batch tokens channels"],
        grid: TokenGrid,
        destinations: Int[Tensor, "destinations"] | None = None,
    ) -> Match:
        """The first half of a call: `match_tokens` with this policy's radius and sharing."""
        return match_tokens(tokens, grid, radius=self.radius, shared=self.shared, destinations=destinations)

    def plan(
        self,
        match: Match,
        grid: TokenGrid,
        capacity: float | None,
        destinations: Int[Tensor, "destinations"] | None = None,
    ) -> MergePlan:
        """The second half of a call: `plan_merge` with this policy's threshold and spare, at a given capacity."""
        return plan_merge(
            match, grid, threshold=self.threshold, capacity=capacity, spare=self.spare, destinations=destinations
        )

    def is_identity(self, grid: TokenGrid, capacity: float | None) -> bool:
        """Whether no plan at this capacity merges anything, whatever the tokens: then merging can be left out."""
        return grid.kept(capacity) == grid.sources and (self.threshold >= 1 or not self.pads)
