"""Any block of tokens to tokens, run on merged tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from catome_core.cache import PairCache
from catome_core.grid import TokenGrid
from catome_core.merging import attention_bias, merge, unmerge


class MergedBlock(nn.Module):
    """Wrap a module `(tokens, *args, **kwargs) -> tokens` so that it runs on merged tokens.

    Args:
        block: The module; its first argument and its result are (batch, tokens, channels).
        cache: Plans the merge from the block's input.
        grid: The layout of the tokens.
        residual: Return `x + unmerge(block(merge(x)) - merge(x))`, so that every token keeps itself and takes
            only the change of its slot: for blocks with a residual connection of their own.
            False: `unmerge(block(merge(x)))`.
        mask_argument: The keyword under which the block takes an additive attention mask (batch, 1, 1, slots).
        proportional: Tell attention how many tokens a key stands for.

    Raises:
        ValueError: If the plan can have padding, or `proportional` is set, and there is no `mask_argument`.

    Examples:
        >>> import torch
        >>> from catome_core import AdaptiveMerge
        >>> cache = PairCache(AdaptiveMerge(threshold=-1, capacity=0.25, spare="fill"))
        >>> block = MergedBlock(nn.Linear(8, 8), cache, TokenGrid((4, 4)))
        >>> block(torch.randn(2, 16, 8)).shape
        torch.Size([2, 16, 8])
    """

    def __init__(
        self,
        block: nn.Module,
        cache: PairCache,
        grid: TokenGrid,
        residual: bool = True,
        mask_argument: str | None = None,
        proportional: bool = False,
    ) -> None:
        super().__init__()
        check_mask(cache, mask_argument, proportional)
        self.block, self.cache, self.grid = block, cache, grid
        self.residual, self.mask_argument, self.proportional = residual, mask_argument, proportional

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the block on the merged tokens; other arguments pass through as they are.

        Raises:
            ValueError: If the caller passes a mask of its own, whose keys would not be the merged ones.
        """
        plan = self.cache(tokens, self.grid)
        if self.mask_argument is not None:
            if kwargs.get(self.mask_argument) is not None:
                raise ValueError(f"{self.mask_argument} was passed to a merged block, which makes it; leave it out")
            kwargs[self.mask_argument] = attention_bias(plan, dtype=tokens.dtype, proportional=self.proportional)
        merged = merge(tokens, plan)
        result = self.block(merged, *args, **kwargs)
        return tokens + unmerge(result - merged, plan) if self.residual else unmerge(result, plan)


def check_mask(cache: PairCache, mask_argument: str | None, proportional: bool) -> None:
    """Raise ValueError if attention must be told of padding or sizes and there is no way to tell it."""
    if mask_argument is not None:
        return
    if cache.policy.spare == "pad":
        raise ValueError(
            "spare='pad' leaves padding that attention must not see, and mask_argument is None; "
            "name the block's mask argument, or use AdaptiveMerge(spare='fill')"
        )
    if proportional:
        raise ValueError("proportional=True needs mask_argument, the keyword of the block's additive attention mask")
