"""What a segment does with its tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from catome_adapters.hooks.scope import Scope
from catome_adapters.sites.weights import SiteWeights
from catome_core import AdaptiveMerge, Lattice, PlanKey


@dataclass(frozen=True, kw_only=True)
class MergeRules:
    """What a segment does with its tokens.

    Attributes:
        scope: What merges.
        policy: How tokens are matched and merged, or which keys attention sees.
        proportional: Weigh every key by the number of tokens it stands for.
        matches_output: Match what the scope computes, instead of what enters it.
        seed: Seed of random destinations, or the place at which a moving lattice begins.
        strides: From the size of a grid to the size of its cells.
        pays_off: Whether merging gains time for such tokens in this run; asked once for every size.
    """

    scope: Scope
    policy: AdaptiveMerge | Lattice
    proportional: bool
    matches_output: bool
    seed: int
    strides: Callable[[tuple[int, ...]], int | tuple[int, ...]]
    pays_off: Callable[[SiteWeights, PlanKey], bool]
