"""What the hooks of a segment share during one forward pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from catome_adapters.hooks.repeats import SegmentPass
from catome_adapters.sites.layout import Side
from catome_adapters.sites.plans import BlockPlans
from catome_core import MergePlan, RecordKeys, TokenGrid


class ForwardState:
    """What the hooks of a segment share during one forward pass.

    Attributes:
        plan: The plan of the tokens that enter a block, with tokens of no grid around them; None: nothing is merged.
        plans: The same for the block that runs, and for its attention.
        active: Whether the scope takes part in this pass.
        grid: The layout of the tokens; None before the first block.
        front: Number of tokens in front of the grid's.
        length: Number of tokens of the block, before the merge.
        before: The tokens (batch, tokens, channels) of the first block, before the merge.
        merged: The same after it (batch, slots, channels).
        match_output: Whether the next output is matched.
        attended: Whether self-attention was called; a cache over steps may return the block's output instead.
        recorded: The keys of the attention that ran last, in progressive merging.
        block_plan: There, what the block that runs merges on top of `plan`.
        repeated: The pass that gradient checkpointing repeats in the backward pass; None in a forward pass.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Drop everything, also what a pass that did not finish left behind."""
        self.plan: MergePlan | None = None
        self.plans: BlockPlans | None = None
        self.before: Tensor | None = None
        self.merged: Tensor | None = None
        self.recorded: RecordKeys | None = None
        self.block_plan: MergePlan | None = None
        self.repeated: SegmentPass | None = None
        self.grid: TokenGrid | None = None
        self.active = self.match_output = self.attended = False
        self.front = self.length = 0

    def own_tokens(self, returned: Any, text_side: Side) -> Tensor:
        """The block's own tokens (batch, tokens, channels) in what attention returned without a merge."""
        tokens: Tensor = returned if isinstance(returned, Tensor) else returned[0]
        first = tokens.shape[1] - self.length if text_side == "front" else 0
        return tokens[:, first : first + self.length]
