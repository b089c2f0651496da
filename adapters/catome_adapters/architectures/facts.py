"""What there is to say about a class of transformer blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from catome_adapters.sites.layout import PerToken, Side

ROTARY = (PerToken("image_rotary_emb"),)
"""One row per token, of text too where it is in the same sequence."""
MODULATION = (PerToken("temb", axis=1, ndim=3, optional=True), PerToken("modulate_index", axis=1, optional=True))
"""Modulation may come with one row per token; mostly one row serves all."""
FRAME_MODULATION = PerToken("temb", axis=1, ndim=4)
"""Modulation of a video in which frames have times of their own."""


@dataclass(frozen=True, kw_only=True)
class BlockFacts:
    """What is special about a class of blocks. Every field but `skipped` is a field of `BlockLayout`.

    Where diffusers' registry does not have the class, its tokens are the first argument and what it returns, unless
    `tokens` and `output` say otherwise.

    Attributes:
        text_side: Where joint attention has its text.
        skipped: Why the block is left alone.
    """

    tokens: str | None = None
    tokens_first: bool | None = None
    attention_arguments: tuple[str, ...] | None = None
    output: int | None = None
    text: str | None = None
    text_side: Side | None = None
    cached: str | None = None
    extra_side: Side | None = None
    per_token: tuple[PerToken, ...] | None = None
    shared: bool | None = None
    bypass: str | None = None
    alone: bool | None = None
    refused: Mapping[str, str] | None = None
    skipped: str | None = None

    @property
    def layout(self) -> dict[str, Any]:
        """The fields that are set, as fields of `BlockLayout`."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "skipped"}
        return {name: value for name, value in values.items() if value is not None}


def joint(text_side: Side, **facts: Any) -> BlockFacts:
    """Image and text as two arguments, of which attention sees both, and the registry has nothing."""
    return BlockFacts(text="encoder_hidden_states", text_side=text_side, **facts)


def single(extra_side: Side, **facts: Any) -> BlockFacts:
    """One sequence, in which text, reference images or padding lie in front of the image, or behind it."""
    return BlockFacts(extra_side=extra_side, **facts)
