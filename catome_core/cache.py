"""Remembering a plan over denoising steps (paper, III-B)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from catome_core.grid import TokenGrid, choose_destinations
from catome_core.ladder import LADDER, choose_rung
from catome_core.matching import Match, check_tokens
from catome_core.places import first_places, next_places
from catome_core.planning import MergePlan, Route, count_overflow, find_route, wanted_places
from catome_core.policy import AdaptiveMerge


class PlanKey(NamedTuple):
    """What a stored plan is valid for."""

    batch: int
    grid: TokenGrid
    device: torch.device
    dtype: torch.dtype


class PairCache(nn.Module):
    """Remembers the merge plan of one layer, and recomputes it when told to or when the stored one does not fit.

    A stored plan is used only for the batch, grid, dtype and device it was made for. Under `torch.compile` the cache
    has exactly two graphs, recompute and reuse, if `allocate` (or a call without compilation) came first, and one more
    otherwise. Its buffers are static memory, as CUDA graphs need, and are not part of the state_dict.

    Args:
        policy: How to merge.
        generator: Draws the destinations of `destination="random"`.

    Attributes:
        capacity: The capacity in use; `fit` moves it.
        key: What the stored plan is valid for (batch, grid, device, dtype); None before the first.
        filled: Whether a plan is stored.
        adrift: Whether compiled code had to allocate the memory: see `settle`.

    Raises:
        ValueError: If the policy draws random destinations and there is no generator.

    Examples:
        >>> cache = PairCache(AdaptiveMerge(threshold=0.5))
        >>> first = cache(torch.ones(1, 16, 8), TokenGrid((4, 4)))
        >>> cache.refresh = False
        >>> again = cache(torch.randn(1, 16, 8), TokenGrid((4, 4)))
        >>> torch.equal(first.slot, again.slot)
        True
    """

    slot: Tensor
    size: Tensor
    anchor: Tensor
    rows: Tensor
    starts: Tensor
    back: Tensor
    score: Tensor
    target: Tensor
    places: Tensor
    destinations: Tensor

    def __init__(self, policy: AdaptiveMerge, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if policy.destination == "random" and generator is None:
            raise ValueError("destination='random' needs a generator; pass generator=torch.Generator().manual_seed(0)")
        self.policy = policy
        self.seed = (
            0 if generator is None else int(torch.randint(2**31, (), generator=generator, device=generator.device))
        )
        self.key: PlanKey | None = None
        self.adrift = False
        self.filled = False
        self._refresh = True
        self.capacity = policy.capacity
        for name in ("slot", "size", "anchor", "rows", "starts", "back", "target", "places", "destinations"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int64), persistent=False)
        self.register_buffer("score", torch.empty(0), persistent=False)

    @property
    def refresh(self) -> bool:
        """Recompute at the next calls (True, as after `reset`) or reuse; set by the caller, never by a call.

        Setting it to True is a checkpoint: rotating and random destinations move on. Calls in between do not move
        them, so a call that is repeated (gradient checkpointing) gives the same plan.
        """
        return self._refresh

    @refresh.setter
    def refresh(self, value: bool) -> None:
        if value and self.filled:
            self.places.copy_(next_places(self.policy.destination, self.places))
        self._refresh = value

    def forward(self, tokens: Tensor, grid: TokenGrid) -> MergePlan:
        """The plan for tokens (batch, tokens, channels): recomputed if `refresh`, or if none that fits is stored.

        It is a view of static memory, which the next recompute overwrites.

        Raises:
            ValueError: If the tokens do not fit the grid.
        """
        check_tokens(tokens, grid)
        key = PlanKey(len(tokens), grid, tokens.device, tokens.dtype)
        if self.key != key:
            self.allocate(*key)
        if self.refresh or not self.filled:
            self._recompute(tokens, grid)
        return self.plan()

    def holds(self, key: PlanKey) -> bool:
        """Whether the next call with such tokens reuses what is stored."""
        return self.filled and not self.refresh and self.key == key

    def plan(self) -> MergePlan:
        """The stored plan, as views of static memory.

        Raises:
            RuntimeError: If nothing is stored.
        """
        key = self._known_key()
        slots = key.grid.slots(self.capacity)
        route = Route(self.rows, self.starts[: key.batch * slots], self.back)
        return MergePlan(self.slot, self.size[:, :slots], self.anchor[:, :slots], route)

    def match(self) -> Match:
        """The match of the last recompute, from which `fit` rebuilds the plan."""
        return Match(self.score, self.target)

    def allocate(
        self,
        batch: int,
        grid: TokenGrid,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Reserve memory for tokens of this batch, grid, device and dtype; what was stored is forgotten.

        Memory is for every source, so that no later capacity moves a buffer.
        """
        device = torch.empty(0, device=device).device
        plans = 1 if self.policy.shared else batch
        index = {"dtype": torch.int64, "device": device}
        self.slot, self.size, self.anchor = (torch.zeros(plans, grid.tokens, **index) for _ in range(3))
        self.rows, self.starts, self.back = (torch.zeros(batch * grid.tokens, **index) for _ in range(3))
        self.score = torch.zeros(plans, grid.sources, device=device)
        self.target = torch.zeros(plans, grid.sources, **index)
        self.places = first_places(self.policy.destination, self.seed, grid, device)
        self.destinations = choose_destinations(grid, self.places)
        self.key = PlanKey(batch, grid, device, dtype)
        self.filled, self.capacity = False, self.policy.capacity
        self.adrift = torch.compiler.is_compiling() or torch.is_inference_mode_enabled()
        if not torch.compiler.is_compiling():
            self.settle()

    def settle(self) -> None:
        """Move the buffers to memory of their own.

        What a compiled graph allocates may belong to a CUDA graph, and what inference mode allocates cannot be
        updated outside it. Call it between steps, not in compiled code.
        """
        if self.adrift:
            with torch.inference_mode(False):
                for name, buffer in self.named_buffers():
                    setattr(self, name, buffer.clone())
            self.adrift = False

    def fit(self, ladder: Sequence[float] = LADDER) -> float:
        """Choose the capacity of the next steps and rebuild the stored plan for it, without touching the tokens.

        Reads one number back from the device. Not for compiled code.

        Args:
            ladder: Capacities to choose from.

        Returns:
            The smallest rung at which no sample overflows; room for every source if no rung is large enough.

        Raises:
            RuntimeError: If no plan is stored.
        """
        rung = choose_rung(ladder, int(self.demand()), self._known_key().grid)
        self.use_capacity(rung)
        return rung

    def use_capacity(self, capacity: float) -> None:
        """Rebuild the stored plan at this capacity, and keep to it."""
        grid = self._known_key().grid
        before, self.capacity = self.capacity, capacity
        if grid.places(before) != grid.places(capacity):
            self._write(self.policy.plan(self.match(), grid, capacity, self.destinations))

    def demand(self) -> Tensor:
        """Places that the neediest sample of the stored match wants: int64, 0-d, on the device."""
        self._known_key()
        return wanted_places(self.match(), self.policy.threshold).amax()

    def overflow(self) -> Tensor:
        """Sources (batch,) that the stored plan merges for want of places: see `count_overflow`."""
        grid = self._known_key().grid
        return count_overflow(self.match(), grid, threshold=self.policy.threshold, capacity=self.capacity)

    def reset(self) -> None:
        """Forget the plan and the fitted capacity; the next call recomputes. Random destinations begin anew."""
        self._refresh, self.filled, self.capacity = True, False, self.policy.capacity
        if self.key is not None:
            self.places.copy_(first_places(self.policy.destination, self.seed, self.key.grid, self.key.device))

    def extra_repr(self) -> str:
        """Shown by `print`."""
        return f"{self.policy}, capacity={self.capacity}, refresh={self.refresh}, filled={self.filled}"

    def _recompute(self, tokens: Tensor, grid: TokenGrid) -> None:
        self.destinations.copy_(choose_destinations(grid, self.places))
        match, plan = self._fresh(tokens.detach(), grid, self.destinations)
        self.score.copy_(match.score)
        self.target.copy_(match.target)
        self._write(plan)
        self.filled = True

    def _fresh(self, tokens: Tensor, grid: TokenGrid, destinations: Tensor) -> tuple[Match, MergePlan]:
        match = self.policy.match(tokens, grid, destinations)
        return match, self.policy.plan(match, grid, self.capacity, destinations)

    def _write(self, plan: MergePlan) -> None:
        slots, route = plan.size.shape[1], find_route(plan, len(self.back) // self.slot.shape[1])
        self.slot.copy_(plan.slot)
        self.size[:, :slots].copy_(plan.size)
        self.anchor[:, :slots].copy_(plan.anchor)
        self.rows.copy_(route.rows)
        self.starts[: len(route.starts)].copy_(route.starts)
        self.back.copy_(route.back)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PairCache:
        """A cast of the module is not for the scores, which stay float32."""
        score = self.score
        super()._apply(fn, recurse)
        self.score = score.to(self.slot.device)
        return self

    def _known_key(self) -> PlanKey:
        if self.key is None or not self.filled:
            raise RuntimeError("the cache holds no plan; call it with tokens first")
        return self.key
