"""Consecutive blocks that share one merge and one unmerge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from torch import nn

from catome_adapters.sites import MergeSite


def segments(sites: Sequence[MergeSite], length: int) -> list[list[MergeSite]]:
    """Sites in groups of at most `length` whose blocks follow one another in their host, without a gap."""
    groups: list[list[MergeSite]] = []
    for site in sites:
        if groups and len(groups[-1]) < length and _follows(groups[-1][-1], site):
            groups[-1].append(site)
        else:
            groups.append([site])
    return groups


def _follows(before: MergeSite, site: MergeSite) -> bool:
    blocks: Sequence[nn.Module] = getattr(site.host, "transformer_blocks", ())
    return before.host is site.host and (before.block, site.block) in pairwise(blocks)


def as_one(sites: Sequence[MergeSite]) -> MergeSite:
    """The first of a segment's sites, under a name for all of them."""
    last = sites[-1].name.rpartition(".")[2]
    return sites[0] if len(sites) == 1 else replace(sites[0], name=f"{sites[0].name} to {last}")
