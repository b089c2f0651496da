"""What the blocks of a network remember in a run: where the lattice is, or the pairs of tokens."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from catome_core import AdaptiveMerge, Lattice, MergePlan, MovingLattice, PairCache, TokenGrid, fit_capacity


class Memory(Protocol):
    """The plans of all blocks in a run."""

    def begin_step(self, step: int, checkpoint: bool) -> None:
        """Before a step, counted from 0; a checkpoint recomputes pairs."""
        ...

    def plans(self, block: int, tokens: Tensor, grid: TokenGrid, conds: Sequence[Hashable]) -> list[MergePlan]:
        """Plans of equal length, for equal parts of the batch; none if nothing merges.

        Args:
            block: Number of the block.
            tokens: (batch, tokens, channels), of all conds one after the other.
            grid: Their layout.
            conds: What names each cond in every step.
        """
        ...


class LatticeMemory(Memory):
    """A lattice for every block; no cond has another one."""

    def __init__(self, policy: Lattice, seed: int) -> None:
        self.policy, self.seed, self.step = policy, seed, 0
        self.lattices: dict[int, MovingLattice] = {}

    def begin_step(self, step: int, checkpoint: bool) -> None:
        """Move on to this step."""
        self.step = step
        for lattice in self.lattices.values():
            lattice.move_to(step)

    def plans(self, block: int, tokens: Tensor, grid: TokenGrid, conds: Sequence[Hashable]) -> list[MergePlan]:
        """One plan of batch 1."""
        if block not in self.lattices:
            self.lattices[block] = MovingLattice(self.policy, self.seed + block, tokens.device)
            self.lattices[block].move_to(self.step)
        return [self.lattices[block](tokens, grid)]


class PairMemory(Memory):
    """Pairs for every block and cond, so that no cond depends on which others it shares a batch with.

    All caches of a grid have one capacity, since their slots are parts of one tensor.
    """

    def __init__(self, policy: AdaptiveMerge, seed: int) -> None:
        self.policy, self.seed = policy, seed
        self.caches: dict[tuple[int, Hashable], PairCache] = {}
        self.used: set[tuple[int, Hashable]] = set()
        self.capacities: dict[TokenGrid, float] = {}

    def begin_step(self, step: int, checkpoint: bool) -> None:
        """Recompute or reuse; after a checkpoint, with the capacity that its pairs need."""
        self._fit()
        for key, cache in self.caches.items():
            # A checkpoint stays due until it has run.
            missed = cache.refresh and key not in self.used
            cache.begin_step(checkpoint or missed)
        self.used.clear()

    def plans(self, block: int, tokens: Tensor, grid: TokenGrid, conds: Sequence[Hashable]) -> list[MergePlan]:
        """One plan for each cond."""
        parts = tokens.chunk(len(conds))
        plans = [self._plan((block, cond), part, grid) for cond, part in zip(conds, parts, strict=True)]
        return [] if self.caches[block, conds[0]].is_identity else plans

    def _plan(self, key: tuple[int, Hashable], tokens: Tensor, grid: TokenGrid) -> MergePlan:
        if key not in self.caches:
            generator = torch.Generator().manual_seed(self.seed + key[0])
            self.caches[key] = PairCache(self.policy, generator)
        cache, capacity = self.caches[key], self.capacities.get(grid, self.policy.capacity)
        plan = cache(tokens, grid)
        self.used.add(key)
        if cache.capacity == capacity:
            return plan
        cache.set_capacity(capacity)
        return cache.plan()

    def _fit(self) -> None:
        """After a checkpoint: room for the block that merges the fewest tokens. Reads once from the device."""
        if self.policy.adapts and any(self.caches[key].refresh for key in self.used):
            self.capacities |= fit_capacity([cache for cache in self.caches.values() if cache.has_plan])
