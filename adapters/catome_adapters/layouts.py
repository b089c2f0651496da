"""How a transformer block takes and returns its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Side = Literal["front", "back"]


@dataclass(frozen=True)
class Follow:
    """An argument with a row for every token, such as a rotary embedding: merged tokens get the row of their anchor.

    Args:
        argument: Its name, in the block's call or in its self-attention's. Left out or None: nothing follows.
        axis: The dimension of the tokens; None: 0 of a matrix (tokens, channels), else 1.
        entry: The one part of a tuple that follows; None: every tensor in it.
        ndim: It follows only with so many dimensions.
        optional: It stays as it is if its length is another one, as for one row that serves all tokens.
        lift: (tokens, channels) becomes (batch, 1, slots, channels), and (heads, tokens, channels) becomes
            (batch, heads, slots, channels), so that every sample has rows of its own.
    """

    argument: str
    axis: int | None = None
    entry: int | None = None
    ndim: int | None = None
    optional: bool = False
    lift: bool = False


@dataclass(frozen=True)
class BlockLayout:
    """How a block takes and returns its tokens. The defaults are a block `(tokens, ...) -> tokens`.

    Args:
        tokens: The block's argument with the tokens (batch, tokens, channels); None: the first.
        attended: The arguments of its self-attention that hold them; empty: the first.
        output: Where the tokens are in the tuple that the block returns; None: it returns them alone.
        text: The block's argument with text tokens (batch, tokens, channels), if self-attention sees them too.
        text_side: Where they lie among the keys of attention: in front of the grid's tokens or behind them.
        rest_side: Where tokens that belong to no grid (reference images, say) lie in the block's tokens: behind them,
            or in front but for those that the measure, as its `others`, knows to be behind; None: there are none,
            and another number of tokens than the grid's is an error.
        follows: What has a row for every token.
        shared: One plan serves the whole batch, since what follows has no batch dimension.
        keys_apart: Self-attention takes keys as `encoder_hidden_states` and what is added to their scores as
            `attention_mask`. False: both are told to `scaled_dot_product_attention` on the way.
        feed_forward: Its feed-forward and, before it, that one's norm, as names of submodules: between attention and
            whichever of them is called first, progressive merging merges. The feed-forward is the last name.
        refused: Scopes that do not work here, and why.
    """

    tokens: str | None = None
    attended: tuple[str, ...] = ()
    output: int | None = None
    text: str | None = None
    text_side: Side = "front"
    rest_side: Side | None = None
    follows: tuple[Follow, ...] = ()
    shared: bool = False
    keys_apart: bool = False
    feed_forward: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
