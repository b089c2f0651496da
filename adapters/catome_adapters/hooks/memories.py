"""Making what a segment remembers, by the policy."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from catome_adapters.hooks.lattices import SiteLattice
from catome_adapters.hooks.memory import SiteMemory
from catome_adapters.hooks.pairs import SitePairs
from catome_core import AdaptiveMerge, Lattice, MovingLattice, PairCache


class Memories:
    """Makes what a segment remembers for each of its plans, with nothing remembered yet.

    Attributes:
        lattice: That of all calls; None if tokens are matched.
    """

    def __init__(
        self,
        names: Sequence[str],
        policy: AdaptiveMerge | Lattice,
        seed: int,
        matches_output: bool,
        device: torch.device | None,
    ) -> None:
        self.names, self.policy, self.seed, self.matches_output = names, policy, seed, matches_output
        self.lattice = MovingLattice(policy, seed, device) if isinstance(policy, Lattice) else None

    def make(self, label: str, always_due: bool) -> Sequence[SiteMemory]:
        """One for each plan; `label` names the context."""
        if self.lattice is not None:
            return [SiteLattice(name + label, self.lattice) for name in self.names]
        return [SitePairs(name + label, self._cache(), self.matches_output, always_due) for name in self.names]

    def _cache(self) -> PairCache:
        assert isinstance(self.policy, AdaptiveMerge)
        # The same seed in every context: what two calls draw is what one batch of both would.
        is_random = self.policy.destination == "random"
        return PairCache(self.policy, torch.Generator().manual_seed(self.seed) if is_random else None)
