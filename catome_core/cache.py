"""Remembering a plan over denoising steps (paper, III-B)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from catome_core import checks
from catome_core.calls import CallMemory, has_values, refuse_jit_trace
from catome_core.capacity import LADDER, count_demand, fit_capacity
from catome_core.grid import TokenGrid
from catome_core.matching import Match, check_tokens
from catome_core.planning import MergePlan, PlanIndex, count_overflow
from catome_core.policy import AdaptiveMerge
from catome_core.recompute import copy_plan, next_offsets, offsets_at_first, recompute
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
        borrowed: Whether compiled code had to allocate the memory, and `own_memory` or `begin_step` is to be called.

    Raises:
        ValueError: If the policy draws random destinations and there is no generator; if a capacity is not from 0 to 1.
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
        self.policy, self.storage = policy, PlanStorage()
        self.first_offsets = offsets_at_first(policy, generator)
        self.calls: CallMemory[MergePlan] = CallMemory()
        self.key: PlanKey | None = None
        self.refresh, self.has_plan, self.is_identity, self.borrowed = True, False, False, False
        self.capacity = policy.capacity

    def forward(
        self, tokens: Float[Tensor, "batch tokens channels"], grid: TokenGrid, *, trim: bool = False
    ) -> MergePlan:
        """The plan for these tokens: views of static memory, or a copy where gradients may be recorded.

        A call that gradient checkpointing repeats with the same tensor has the same plan. Of tokens without values
        (meta, fake) nothing is stored. To `trim`, with no capacity in use and in eager code, is to leave out padding
        that no sample needs, down to a rung of `LADDER`: a recompute then reads once from the device.

        Raises:
            ValueError: If the tokens do not fit the grid.
            RuntimeError: In `torch.jit.trace`, or if a call is repeated with another tensor.
        """
        if torch.compiler.is_compiling():
            return _plan(self, tokens, grid, trim=False)
        refuse_jit_trace()
        self.own_memory()
        return self.calls.decide(tokens, lambda: _plan(self, tokens, grid, trim), "the cache")

    def begin_step(self, checkpoint: bool) -> None:
        """Recompute or reuse in the next calls; a checkpoint moves rotating and random destinations on. Eager only."""
        self.own_memory()
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
        return count_demand(self.match(), self.policy.threshold)

    def overflow(self) -> Int[Tensor, "plans"]:
        """Sources that the stored plan merges because kept slots are too few: see `count_overflow`."""
        grid = _stored_grid(self)
        return count_overflow(self.match(), grid, threshold=self.policy.threshold, capacity=self.capacity)

    def fit(self, ladder: Sequence[float] = LADDER) -> float:
        """Choose the capacity of the next steps and rebuild the stored plan for it: `fit_capacity` of one cache."""
        return fit_capacity([self], ladder)[_stored_grid(self)]

    def set_capacity(self, capacity: float | None) -> None:
        """Rebuild the stored plan at this capacity, and keep to it until `reset` or `allocate`."""
        grid, self.capacity = _stored_grid(self), checks.capacity(capacity)
        self.own_memory()
        self.has_plan, self.is_identity = False, self.policy.is_identity(grid, self.capacity)
        if self.storage.slots != grid.slots(self.capacity):
            self.storage.write(self.policy.plan(self.match(), grid, self.capacity, self.storage.destinations))
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
        self.own_memory()
        self.refresh = True
        _forget(self, self.key)


def _read(storage: PlanStorage) -> MergePlan:
    """The stored plan, as views of its memory."""
    slots, batch = storage.slots, len(storage.inverse) // storage.slot.shape[1]
    route = PlanIndex(storage.rows, storage.offsets[: batch * slots], storage.inverse)
    return MergePlan(storage.slot, storage.size[:, :slots], storage.anchor[:, :slots], route)


def _plan(cache: PairCache, tokens: Tensor, grid: TokenGrid, trim: bool) -> MergePlan:
    key, storage = PlanKey(len(tokens), grid, tokens.device, tokens.dtype), cache.storage
    fits = cache.key == key and tokens.shape[1] == storage.slot.shape[1]
    if not fits:
        check_tokens(tokens, grid)
    if not fits or cache.refresh or not cache.has_plan:
        if not has_values(tokens):
            return _preview(cache, tokens, key)
        if not fits:
            cache.allocate(*key)
        # An interrupt leaves no plan, rather than half of one.
        cache.has_plan = False
        new = recompute(cache.policy, tokens, grid, storage.cell_offsets, cache.capacity, trim)
        storage.write_match(new.match, new.destinations)
        storage.write(new.plan)
        cache.has_plan = True
    plan = _read(storage)
    return copy_plan(plan) if torch.is_grad_enabled() else plan


def _preview(cache: PairCache, tokens: Tensor, key: PlanKey) -> MergePlan:
    """The plan that a recompute would store."""
    capacity, offsets = cache.capacity, cache.storage.cell_offsets
    if cache.key != key:
        capacity, offsets = cache.policy.capacity, cache.first_offsets(key.grid, key.device)
    return recompute(cache.policy, tokens, key.grid, offsets, capacity, trim=False).plan


def _forget(cache: PairCache, key: PlanKey | None) -> None:
    """No plan, the policy's capacity, the destinations of the first checkpoint."""
    cache.has_plan, cache.capacity = False, cache.policy.capacity
    if key is not None:
        cache.storage.cell_offsets.copy_(cache.first_offsets(key.grid, key.device))
        cache.is_identity = cache.policy.is_identity(key.grid, cache.capacity)


def _stored_grid(cache: PairCache) -> TokenGrid:
    if cache.key is None or not cache.has_plan:
        raise RuntimeError("the cache holds no plan; call it with tokens first")
    return cache.key.grid
