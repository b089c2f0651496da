"""ToMe's own mode (Bolya et al. 2023): every block of a model merges some more, and only the last one unmerges."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from catome_adapters.hooks.attention import Contexts, SelfAttention
from catome_adapters.hooks.between import refuse_hidden_states
from catome_adapters.hooks.forward import ForwardState
from catome_adapters.hooks.owner import HookOwner
from catome_adapters.hooks.scope import Planner, Scope
from catome_adapters.sites.call import Arguments, BlockCall, gather_rows
from catome_adapters.sites.site import MergeSite
from catome_adapters.sites.weights import Flops, SiteWeights
from catome_core import AdaptiveMerge, Lattice, RecordKeys, TokenGrid, compose, merge_weighted, sort_slots, unmerge


class Progressive(Scope):
    """Merges between attention and feed-forward of every block of a chain, on top of what the blocks before merged.

    The keys of the block's attention decide what merges. Every other token of the sequence is a destination, since
    there is no grid any more; slots stay in the order of the picture. Sizes, masks and rotary rows are those of the
    whole merge since the model's tokens. After the last block every token gets the value of its slot: so pooling over
    tokens weighs every slot by its size, and the model's features keep their length.
    """

    spans_block = True
    plans_ahead = False
    predictable = False

    def install(self, planner: Planner, blocks: Sequence[BlockCall], undo: ExitStack) -> None:
        """Hooks around the feed-forward of every block."""
        for index, block in enumerate(blocks):
            FeedForward(planner, index, block, undo)

    def before_block(self, state: ForwardState, block: BlockCall, call: Arguments) -> Arguments:
        """Rows for the slots that the blocks before have left."""
        refuse_hidden_states(block, call)
        return call if state.plans is None else gather_rows(call, block.signature, block.site, state.plans)

    def before_attention(
        self, state: ForwardState, attention: SelfAttention, call: Arguments
    ) -> tuple[Arguments, Contexts]:
        """Its tokens are slots already; its keys are recorded."""
        state.recorded = record = RecordKeys()
        if state.plans is None:
            return call, (record,)
        call, contexts = attention.aware(call, state.plans)
        return call, (*contexts, record)

    def after_attention(self, state: ForwardState, attention: SelfAttention, returned: Any) -> Any:
        """Check that its keys are there."""
        if state.recorded is None or state.recorded.keys is None:
            raise ValueError(
                f"{attention.site.name}: {type(attention.module).__name__} did not call scaled_dot_product_attention, "
                'whose keys decide what scope="progressive" merges: switch to fused attention, or use RECIPES["vit"]'
            )
        return returned

    def after_block(self, state: ForwardState, block: BlockCall, returned: Any) -> Any:
        """The output merges as the feed-forward's input has; after the last block all tokens are unmerged."""
        if state.block_plan is not None:
            returned = block.with_output(returned, merge_further(state, block.output(returned)))
            state.plan = state.block_plan if state.plan is None else compose(state.plan, state.block_plan)
            state.block_plan = None
        if block.is_last and state.plan is not None:
            returned = block.with_output(returned, unmerge(block.output(returned), state.plan))
        return returned

    def saved_flops(self, weights: SiteWeights, tokens: int, removed: float) -> Flops:
        """As for a whole block."""
        return weights.saved_in_block(tokens, removed)

    def passes(self, kept: float) -> float:
        """As for a whole block."""
        return 4 + 4 * kept

    def blocks_per_segment(self, requested: int, sites: int) -> int:
        """All blocks that follow one another."""
        return sites

    def recipe_error(self, policy: AdaptiveMerge | Lattice, segment: int) -> str | None:
        """The number of tokens after each block has to be fixed in advance."""
        fixed = isinstance(policy, AdaptiveMerge) and policy.radius is None and not policy.pads and not policy.adapts
        if fixed and segment == 1:
            return None
        return (
            f"segment={segment} and {policy}; expected segment=1 and a number of tokens that is fixed in advance: "
            'AdaptiveMerge(threshold=-1, capacity=0.44, spare="fill"), or RECIPES["tome"]'
        )

    def site_error(self, site: MergeSite) -> str | None:
        """Only for models that are called once per input, and say where their blocks have the feed-forward."""
        if site.denoises:
            return 'it merges for good, and this model draws every token; use scope="block" with segment=4, say'
        names, modules = site.layout.feed_forward, dict(site.block.named_modules())
        if names and all(name in modules for name in names):
            return None
        return (
            f"it merges between attention and feed-forward, and the site does not say where "
            f"{type(site.block).__name__} has its feed-forward: pass sites=[MergeSite(..., "
            'layout=BlockLayout(feed_forward=("norm2", "mlp")))] with the names of its modules, or use RECIPES["vit"]'
        )


class FeedForward(HookOwner):
    """Hooks on the second half of a block, which runs on fewer slots than the first.

    The block adds what its feed-forward returns to the tokens that attention has left, where no hook reaches. So the
    result is unmerged for this sum, and the sum merges: by the linearity of the mean, what the merged tokens would sum
    to.
    """

    def __init__(self, planner: Planner, index: int, block: BlockCall, undo: ExitStack) -> None:
        self.planner, self.index, self.prefix = planner, index, block.site.prefix
        parts = [block.site.block.get_submodule(name) for name in block.layout.feed_forward]
        for part in parts:
            undo.callback(part.register_forward_pre_hook(self._before).remove)
        undo.callback(parts[-1].register_forward_hook(self._after).remove)

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Merge once, before whichever part runs first."""
        if self.is_copy:
            return args
        state = self.planner.state
        recorded, state.recorded = state.recorded, None
        if recorded is None or recorded.keys is None:
            return args
        tokens, *others = args
        grid = TokenGrid((1, tokens.shape[1] - self.prefix), (1, 2), self.prefix)
        plan = self.planner.plan(self.index, recorded.keys.mean(1), grid)
        if plan is None:
            return args
        # Sorted, so that in the next block, too, every other token in the order of the picture is a destination.
        state.block_plan = sort_slots(plan)
        return (merge_further(state, tokens), *others)

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        block_plan = None if self.is_copy else self.planner.state.block_plan
        return output if block_plan is None else unmerge(output, block_plan)


def merge_further(state: ForwardState, tokens: Tensor) -> Tensor:
    """Merge tokens (batch, slots, channels), which stand for several each, by the block's own plan."""
    assert state.block_plan is not None
    size = torch.ones_like(state.block_plan.slot) if state.plan is None else state.plan.size
    return merge_weighted(tokens, size, state.block_plan)
