"""How a transformer block takes and returns its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Side = Literal["front", "back"]


@dataclass(frozen=True)
class PerToken:
    """An argument with one row per token, such as a rotary embedding: each slot gets the row of its anchor.

    Args:
        argument: Its name, in the call of the block or of its self-attention. Ignored if it is absent or None.
        axis: The dimension that counts tokens; None: 0 of a matrix (tokens, channels), else 1.
        entry: The one part of a tuple that has rows; None: every tensor in it.
        ndim: Only tensors with this many dimensions have rows.
        optional: Left unchanged when its length does not match the tokens, as for one row that serves all tokens.
        add_batch: (tokens, channels) becomes (batch, 1, slots, channels), and (heads, tokens, channels) becomes
            (batch, heads, slots, channels), so that every sample has rows of its own.
    """

    argument: str
    axis: int | None = None
    entry: int | None = None
    ndim: int | None = None
    optional: bool = False
    add_batch: bool = False


@dataclass(frozen=True, kw_only=True)
class BlockLayout:
    """How a block takes and returns its tokens. The defaults describe a block `(tokens, ...) -> tokens`.

    Args:
        tokens: The block's argument with the tokens (batch, tokens, channels); None: the first.
        attention_arguments: The arguments of its self-attention that hold the tokens; empty: the first.
        output: Index of the tokens in the tuple that the block returns; None: it returns the tokens alone.
        text: The block's argument with text tokens (batch, tokens, channels), if self-attention attends to them too.
        text_side: Where the text is among the keys of attention: in front of the grid's tokens or behind them.
        extra_side: Where tokens of no grid (reference images, text in the same sequence) lie among the block's tokens:
            behind the grid, or in front of it except for those that `MergeSite.grid_of` counts as behind. None: there
            are none, and a number of tokens other than the grid's is an error.
        per_token: The arguments with one row per token.
        shared: One plan serves the whole batch, since the rows of `per_token` have no batch dimension.
        takes_keys: Self-attention takes its keys as `encoder_hidden_states` and an additive bias of the scores as
            `attention_mask`. False, or with a processor that is not one of diffusers' plain ones: its calls of
            `scaled_dot_product_attention` are intercepted.
        feed_forward: Submodule names of the norm and the feed-forward, the feed-forward last; progressive merging
            happens before whichever runs first.
        alone: The network changes the sequence between such blocks, so that they are never part of a segment.
        refused: Scopes that do not work here, and why.
    """

    tokens: str | None = None
    attention_arguments: tuple[str, ...] = ()
    output: int | None = None
    text: str | None = None
    text_side: Side = "front"
    extra_side: Side | None = None
    per_token: tuple[PerToken, ...] = ()
    shared: bool = False
    takes_keys: bool = False
    feed_forward: tuple[str, ...] = ()
    alone: bool = False
    refused: Mapping[str, str] = field(default_factory=dict[str, str])
