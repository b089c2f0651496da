"""Remembering a plan over denoising steps (paper, III-B)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from catome_core.capacity import LADDER, fit_capacity
from catome_core.grid import TokenGrid, choose_destinations, first_offsets, next_offsets
from catome_core.matching import Match, check_tokens
from catome_core.planning import MergePlan, PlanIndex, count_overflow, count_unmergeable
from catome_core.policy import AdaptiveMerge
from catome_core.storage import PlanKey, PlanStorage

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class PairCache(nn.Module):
    """Remembers the merge plan of one layer, and recomputes it if `refresh` is set or the stored one does not fit.

    A stored plan is used only for the batch, grid, dtype and device it was made for. Compiled, there are two graphs,
    recompute and reuse, and one more unless `allocate` or an eager call came first. Memory is static: `PlanStorage`.

    Args:
        policy: How to merge.
        generator: Draws the destinations of `destination="random"`.

    Attributes:
        refresh: Recompute at the next calls (True, as after `reset`) or reuse; set by the caller, never by a call.
        capacity: The capacity in use; `fit` and `set_capacity` change it.
        key: What the stored plan is valid for (batch, grid, device, dtype); None before the first.
        has_plan: Whether a plan is stored.
        is_identity: Whether no plan at the capacity in use merges anything, so that merging can be left out.
        borrowed: Whether compiled code had to allocate the memory, and `own_memory` is to be called.

    Raises:
        ValueError: If the policy draws random destinations and there is no generator.
        RuntimeError: If `plan`, `demand`, `overflow`, `fit` or `set_capacity` is called and no plan is stored.

    Examples:
        >>> cache = PairCache(AdaptiveMerge(threshold=0.5))
        >>> first = cache(torch.ones(1, 16, 8), TokenGrid((4, 4)))
        >>> cache.refresh = False
        >>> again = cache(torch.randn(1, 16, 8), TokenGrid((4, 4)))
        >>> torch.equal(first.slot, again.slot)
        True
    """

    def __init__(self, policy: AdaptiveMerge, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if policy.destination == "random" and generator is None:
            raise ValueError("destination='random' needs a generator; pass generator=torch.Generator().manual_seed(0)")
        self.policy, self.storage, self.seed = policy, PlanStorage(), 0
        if generator is not None:
            self.seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
        self.key: PlanKey | None = None
        self.refresh: bool = True
        self.has_plan: bool = False
        self.is_identity: bool = False
        self.borrowed: bool = False
        self.capacity = policy.capacity

    def forward(self, tokens: Float[Tensor, "batch tokens channels"], grid: TokenGrid) -> MergePlan:
        """The plan for these tokens, as views of static memory, which the next recompute overwrites.

        Raises:
            ValueError: If the tokens do not fit the grid.
        """
        key = PlanKey(len(tokens), grid, tokens.device, tokens.dtype)
        if self.key != key or tokens.shape[1] != self.storage.slot.shape[1]:
            check_tokens(tokens, grid)
            self.allocate(*key)
        if self.refresh or not self.has_plan:
            _recompute(self, tokens.detach(), grid)
        return _read(self.storage)

    def begin_step(self, checkpoint: bool) -> None:
        """Recompute or reuse in the next calls; a checkpoint moves rotating and random destinations on. Eager only."""
        self.own_memory()
        # Here and not in a call, which gradient checkpointing repeats.
        if checkpoint and self.has_plan:
            self.storage.cell_offsets.copy_(next_offsets(self.policy.destination, self.storage.cell_offsets))
        self.refresh = checkpoint

    def will_reuse(self, key: PlanKey) -> bool:
        """Whether the next call with such tokens reuses what is stored."""
        return self.has_plan and not self.refresh and self.key == key

    def plan(self) -> MergePlan:
        """The stored plan, as views of static memory."""
        _stored_grid(self)
        return _read(self.storage)

    def match(self) -> Match:
        """The match of the last recompute, from which `fit` rebuilds the plan."""
        return Match(self.storage.score, self.storage.target)

    def demand(self) -> Int[Tensor, ""]:
        """Number of kept slots at which no sample of the stored match overflows: int64, on the device."""
        _stored_grid(self)
        return count_unmergeable(self.match(), self.policy.threshold).amax()

    def overflow(self) -> Int[Tensor, "plans"]:
        """Sources that the stored plan merges because kept slots are too few: see `count_overflow`."""
        grid = _stored_grid(self)
        return count_overflow(self.match(), grid, threshold=self.policy.threshold, capacity=self.capacity)

    def fit(self, ladder: Sequence[float] = LADDER) -> float:
        """Choose the capacity of the next steps and rebuild the stored plan for it: `fit_capacity` of one cache."""
        return fit_capacity([self], ladder)[_stored_grid(self)]

    def set_capacity(self, capacity: float | None) -> None:
        """Rebuild the stored plan at this capacity, and keep to it until `reset` or `allocate`."""
        grid, before = _stored_grid(self), self.capacity
        self.has_plan = False
        _use_capacity(self, grid, capacity)
        if grid.kept(before) != grid.kept(capacity):
            self.storage.write(self.policy.plan(self.match(), grid, capacity, self.storage.destinations))
        self.has_plan = True

    def allocate(
        self, batch: int, grid: TokenGrid, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        """Reserve memory for tokens of this batch, grid, device and dtype; what was stored is forgotten."""
        key = PlanKey(batch, grid, torch.empty(0, device=device).device, dtype)
        # Set again when all is in place, so that an interrupt leaves no key without its memory.
        self.key = None
        self.storage.allocate(key, self.policy.shared)
        _forget(self, key)
        self.key = key
        self.borrowed = torch.compiler.is_compiling() or torch.is_inference_mode_enabled()
        if not torch.compiler.is_compiling():
            self.own_memory()

    def own_memory(self) -> None:
        """Move the buffers to memory of their own if they are borrowed; between steps, not in compiled code."""
        if self.borrowed:
            self.storage.own_memory()
            self.borrowed = False

    def reset(self) -> None:
        """Forget the plan and the fitted capacity; the next call recomputes. Random destinations start over."""
        self.refresh = True
        _forget(self, self.key)


def _read(storage: PlanStorage) -> MergePlan:
    """The stored plan, as views of its memory."""
    slots, batch = storage.slots, len(storage.inverse) // storage.slot.shape[1]
    route = PlanIndex(storage.rows, storage.offsets[: batch * slots], storage.inverse)
    return MergePlan(storage.slot, storage.size[:, :slots], storage.anchor[:, :slots], route)


def _recompute(cache: PairCache, tokens: Tensor, grid: TokenGrid) -> None:
    policy, storage = cache.policy, cache.storage
    # An interrupt leaves no plan, rather than half of one.
    cache.has_plan = False
    storage.destinations.copy_(choose_destinations(grid, storage.cell_offsets))
    match = policy.match(tokens, grid, storage.destinations)
    storage.write_match(match)
    storage.write(policy.plan(match, grid, cache.capacity, storage.destinations))
    cache.has_plan = True


def _forget(cache: PairCache, key: PlanKey | None) -> None:
    """No plan, the policy's capacity, the destinations of the first checkpoint."""
    cache.has_plan, cache.capacity = False, cache.policy.capacity
    if key is not None:
        offsets = first_offsets(cache.policy.destination, cache.seed, key.grid, key.device)
        cache.storage.cell_offsets.copy_(offsets)
        _use_capacity(cache, key.grid, cache.capacity)


def _use_capacity(cache: PairCache, grid: TokenGrid, capacity: float | None) -> None:
    """Note what follows from the capacity, so that a reuse step need not compute it."""
    cache.capacity, cache.storage.slots = capacity, grid.slots(capacity)
    cache.is_identity = cache.policy.is_identity(grid, capacity)


def _stored_grid(cache: PairCache) -> TokenGrid:
    if cache.key is None or not cache.has_plan:
        raise RuntimeError("the cache holds no plan; call it with tokens first")
    return cache.key.grid
