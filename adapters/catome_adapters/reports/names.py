"""Names of lines: the blocks of one transformer share one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def group_name(site: str) -> str:
    """What the blocks of one transformer have in common, with the context and call.

    Examples:
        >>> group_name("mid_block.attentions.0.transformer_blocks.1 (cond)"), group_name("blocks.3 to 5")
        ('mid_block.attentions.0 (cond)', 'blocks')
    """
    name, bracket, label = site.partition(" (")
    return (name.rpartition(".")[0].removesuffix(".transformer_blocks") or name) + bracket + label


def name_groups(groups: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Names for lines, each with the name of a transformer and the sites of it that the line is about.

    Examples:
        >>> name_groups([("mid", ["mid.0", "mid.1"]), ("up", ["up.0"])])
        ['mid x 2', 'up']
        >>> name_groups([("blocks", ["blocks.0"]), ("blocks", ["blocks.1"])])
        ['blocks.0', 'blocks.1']
    """
    lines = Counter(name for name, _ in groups)
    counts = [len(set(sites)) for _, sites in groups]
    return [
        f"{name} x {count}" if count > 1 else sites[0] if lines[name] > 1 else name
        for (name, sites), count in zip(groups, counts, strict=True)
    ]
