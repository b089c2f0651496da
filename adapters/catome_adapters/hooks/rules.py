"""What a segment does with its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from catome_adapters.hooks.scope import Scope
from catome_adapters.sites.site import MergeSite
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
        seed: Seed of random destinations, or the step that a moving lattice begins with.
        strides: From the size of a grid and the part of the run, from 0, to the size of the cells.
        parts: Number of parts of the run that have cells of their own.
        pays_off: Whether merging gains time for such tokens in this run, in compiled code or not; asked once for every
            size.
    """

    scope: Scope
    policy: AdaptiveMerge | Lattice
    proportional: bool
    matches_output: bool
    seed: int
    strides: Callable[[tuple[int, ...], int], int | tuple[int, ...]]
    parts: int
    pays_off: Callable[[SiteWeights, PlanKey, bool], bool]


def policy_for(rules: MergeRules, sites: Sequence[MergeSite]) -> AdaptiveMerge | Lattice:
    """With one plan for the whole batch, where a layout needs that for its rows."""
    shared = rules.scope.merges_queries and any(site.layout.shared for site in sites)
    policy = rules.policy
    return replace(policy, shared=True) if shared and isinstance(policy, AdaptiveMerge) else policy
