"""Where the tokens of a grid lie in one call of a block, and the plans for the sequences around them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from catome_core import MergePlan, TokenGrid


class BlockPlans(NamedTuple):
    """One merge as a plan for each of the two sequences that a block works on.

    Attributes:
        tokens: For the block's own tokens.
        keys: For the keys of its self-attention, which may hold the text as well.
    """

    tokens: MergePlan
    keys: MergePlan


class Location(NamedTuple):
    """Where the tokens of the grid lie in one call of a block.

    Attributes:
        tokens: The block's tokens (batch, tokens, channels).
        grid: The grid of some of them.
        front: Number of tokens in front of the grid's.
        back: Number of tokens behind them.
        text: Number of text tokens among the keys of self-attention, in front of the block's tokens and behind.
    """

    tokens: Tensor
    grid: TokenGrid
    front: int
    back: int
    text: tuple[int, int]
