"""The plans for the sequences that a block works on."""

from __future__ import annotations

from typing import NamedTuple

from catome_core import MergePlan


class BlockPlans(NamedTuple):
    """One merge as a plan for each of the two sequences that a block works on.

    Attributes:
        tokens: For the block's own tokens.
        keys: For the keys of its self-attention, which may hold the text as well.
    """

    tokens: MergePlan
    keys: MergePlan
