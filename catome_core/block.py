"""Any block of tokens to tokens, run on merged tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.functional import pad

from catome_core.attention.intercept import InterceptAttention
from catome_core.attention.masks import attention_bias
from catome_core.cache import PairCache
from catome_core.capacity import SLOT_MULTIPLE
from catome_core.grid import TokenGrid
from catome_core.merging import merge, unmerge
from catome_core.planning import MergePlan

if TYPE_CHECKING:
    from jaxtyping import Float


class MergedBlock(nn.Module):
    """Wrap a module `(tokens, *args, **kwargs) -> tokens` so that it runs on merged tokens.

    Attention must take account of slots: which are padding, and how many tokens each stands for. Where the block calls
    torch's `scaled_dot_product_attention` or `nn.MultiheadAttention` with as many keys as there are slots, the call is
    intercepted. A mask that the caller passes for the tokens becomes the mask of the anchors there. Where a tensor that
    the caller passes has as many rows as there are slots, such as text to attend to, padding tells them apart.

    Every `nn.TransformerEncoderLayer` in the block keeps a hook that does nothing, and every `nn.TransformerEncoder` no
    longer makes nested tensors: the kernels that compute a whole layer cannot be intercepted.

    Args:
        block: The module; its first argument and its result are (batch, tokens, channels).
        cache: Plans the merge from the block's input.
        grid: The layout of the tokens.
        residual: Return `x + unmerge(block(merge(x)) - merge(x))`, so that every token keeps itself and takes
            only the change of its slot: for blocks with a residual connection of their own.
            False: `unmerge(block(merge(x)))`.
        mask_argument: For a block with attention code of its own: the keyword under which it takes an additive
            attention mask (batch, 1, 1, slots).
        proportional: Weigh every key by the number of tokens it stands for.

    Examples:
        >>> import torch
        >>> from catome_core import AdaptiveMerge
        >>> cache = PairCache(AdaptiveMerge(threshold=0.5))
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> block = MergedBlock(layer, cache, TokenGrid((4, 4)), proportional=True)
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
        self.block, self.cache, self.grid = block, cache, grid
        self.residual, self.mask_argument, self.proportional = residual, mask_argument, proportional
        _disable_fast_path(block)

    def forward(
        self, tokens: Float[Tensor, "batch tokens channels"], *args: Any, **kwargs: Any
    ) -> Float[Tensor, "batch tokens channels"]:
        """Run the block on the merged tokens; other arguments pass through as they are.

        Raises:
            TypeError: If the block does not return a tensor.
            ValueError: If attention must take account of slots and was not intercepted, or if the caller passes the
                mask that `mask_argument` names, whose keys would not be the merged ones.
        """
        plan = self.cache(tokens, self.grid, trim=True)
        if not self.mask_argument and (self.proportional or self.cache.policy.pads):
            plan = _tell_apart(plan, (*args, *kwargs.values()))
        merged = merge(tokens, plan)
        run = self._run_with_mask if self.mask_argument else self._run_intercepted
        result = run(plan, merged, args, kwargs)
        if not isinstance(result, Tensor):
            raise TypeError(
                f"{type(self.block).__name__} returned {type(result).__name__}; expected a tensor (batch, "
                f"{merged.shape[1]}, channels): wrap a module around it that returns the tokens alone"
            )
        return tokens + unmerge(result - merged, plan) if self.residual else unmerge(result, plan)

    def _run_with_mask(self, plan: MergePlan, merged: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = str(self.mask_argument)
        if kwargs.get(name) is not None:
            raise ValueError(f"{name} was passed to a merged block, which makes it; leave it out")
        bias = attention_bias(plan, dtype=merged.dtype, proportional=self.proportional)
        return self.block(merged, *args, **kwargs | {name: bias})

    def _run_intercepted(self, plan: MergePlan, merged: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        padded = self.cache.policy.pads
        # A whole block may attend more than once, or hold several blocks.
        intercept = InterceptAttention(plan, proportional=self.proportional, padded=padded, all_calls=True)
        with intercept:
            result = self.block(merged, *args, **kwargs)
        if intercept.required and not intercept.was_called:
            raise ValueError(self._not_reached(intercept.length))
        return result

    def _not_reached(self, slots: int) -> str:
        needs = f"proportional={self.proportional} and spare={self.cache.policy.spare!r}"
        return (
            f"{type(self.block).__name__} did not call scaled_dot_product_attention or nn.MultiheadAttention with "
            f"{slots} keys, so its attention cannot take account of slots ({needs}): name its mask_argument, or use "
            "AdaptiveMerge(capacity=0.5, spare='fill') and proportional=False, which need nothing of its attention"
        )


def _tell_apart(plan: MergePlan, given: tuple[Any, ...]) -> MergePlan:
    """The same merge with padding until no tensor has as many rows as there are slots, by which attention is known."""
    slots = plan.size.shape[1]
    lengths = [length for one in given if isinstance(one, Tensor) for length in one.shape[:-1]]
    longer = slots
    while longer in lengths:
        longer += SLOT_MULTIPLE
    if longer == slots:
        return plan
    size, anchor = (pad(part, (0, longer - slots)) for part in (plan.size, plan.anchor))
    return MergePlan(plan.slot, size, anchor)


def _disable_fast_path(block: nn.Module) -> None:
    """Kernels that compute a whole encoder layer cannot be intercepted."""
    for module in block.modules():
        if isinstance(module, nn.TransformerEncoder):
            # With a mask, it would make nested tensors for them, of the tokens before the merge.
            module.use_nested_tensor = False
        # Compiled, a layer without hooks is a single kernel.
        # Torch has no public way to look for hooks.
        if isinstance(module, nn.TransformerEncoderLayer) and not module._forward_pre_hooks:  # pyright: ignore[reportPrivateUsage]
            module.register_forward_pre_hook(_do_nothing)


def _do_nothing(module: nn.Module, args: tuple[Any, ...]) -> None: ...
