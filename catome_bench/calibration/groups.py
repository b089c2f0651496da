"""Sites that get one setting."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from catome_adapters import MergeSite
from catome_adapters.reports.names import group_name

MOST_GROUPS = 8
"""Up to here long lists of blocks are cut: every group costs as many pictures."""


def group_by_setting(sites: Sequence[MergeSite]) -> dict[str, tuple[MergeSite, ...]]:
    """The sites of one transformer at one level, by the names of the first and the last.

    As long as there are fewer than eight groups, the longest is halved: a UNet keeps its transformers, and a list of 38
    blocks becomes eight groups of consecutive ones.

    Examples:
        >>> from torch import nn
        >>> blocks = [nn.TransformerEncoderLayer(8, 2, batch_first=True) for _ in range(16)]
        >>> sites = [MergeSite(f"blocks.{index}", one, one.self_attn, one) for index, one in enumerate(blocks)]
        >>> list(group_by_setting(sites))[:2], len(group_by_setting(sites))
        (['blocks.0 to 1', 'blocks.2 to 3'], 8)
    """
    by_transformer: dict[tuple[str, int], list[MergeSite]] = defaultdict(list)
    for site in sites:
        by_transformer[group_name(site.name), site.level].append(site)
    groups = list(by_transformer.values())
    while len(groups) < MOST_GROUPS and max(map(len, groups), default=1) > 1:
        longest = max(range(len(groups)), key=lambda index: len(groups[index]))
        groups[longest : longest + 1] = _halves(groups[longest])
    return {_name(group): tuple(group) for group in groups}


def _halves(sites: list[MergeSite]) -> list[list[MergeSite]]:
    middle = (len(sites) + 1) // 2
    return [sites[:middle], sites[middle:]]


def _name(sites: Sequence[MergeSite]) -> str:
    first, last = sites[0].name, sites[-1].name
    return first if len(sites) == 1 else f"{first} to {last.rpartition('.')[2]}"
