"""Consecutive blocks that share one merge and one unmerge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from catome_adapters.arguments import Signature
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
    (folder, index), (next_folder, next_index) = (one.name.rpartition(".")[::2] for one in (before, site))
    numbered = index.isdecimal() and next_index.isdecimal()
    return before.host is site.host and folder == next_folder and numbered and int(next_index) == int(index) + 1


def as_one(sites: Sequence[MergeSite]) -> MergeSite:
    """The first of a segment's sites, under a name for all of them."""
    last = sites[-1].name.rpartition(".")[2]
    return sites[0] if len(sites) == 1 else replace(sites[0], name=f"{sites[0].name} to {last}")


def refuse_between(
    name: str, signature: Signature, host: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Before a call of the host: what it adds to the tokens between blocks has a row for every token.

    Raises:
        ValueError: If there is something to add.
    """
    given = signature.bind((args, kwargs))
    added = [argument for argument, value in given.items() if "controlnet" in argument and value is not None]
    if added:
        raise ValueError(
            f"{name} is a segment, whose tokens stay merged between its blocks, and {type(host).__name__} adds "
            f"{added[0]} there: use segment=1, or leave the ControlNet out"
        )
