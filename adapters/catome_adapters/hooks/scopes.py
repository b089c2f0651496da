"""The scopes: around self-attention, its keys only, around the block, and progressive."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from catome_adapters.hooks.attention import Contexts, SelfAttention
from catome_adapters.hooks.between import refuse_hidden_states
from catome_adapters.hooks.forward import ForwardState
from catome_adapters.hooks.progressive import Progressive
from catome_adapters.hooks.scope import Scope
from catome_adapters.sites.call import Arguments, BlockCall, gather_rows
from catome_adapters.sites.plans import BlockPlans
from catome_adapters.sites.site import MergeSite
from catome_adapters.sites.weights import Flops, SiteWeights
from catome_core import merge, unmerge


class AroundAttention(Scope):
    """Tokens merge before self-attention and are copied back after it (paper, III-A)."""

    def before_attention(
        self, state: ForwardState, attention: SelfAttention, call: Arguments
    ) -> tuple[Arguments, Contexts]:
        """Merge its tokens."""
        plans = _plans(state, attention)
        return attention.aware(attention.merge(call, plans), plans)

    def after_attention(self, state: ForwardState, attention: SelfAttention, returned: Any) -> Any:
        """Unmerge its result."""
        return attention.unmerge(returned, _plans(state, attention))

    def saved_flops(self, weights: SiteWeights, tokens: int, removed: float) -> Flops:
        """Projections of the removed tokens, and everything between them.

        Examples:
            >>> weights = SiteWeights(channels=8, width=8, projections=256, rest=1024, text_width=0, itemsize=4)
            >>> AroundAttention().saved_flops(weights, 100, 0.5)
            Flops(linear=25600.0, attention=240000.0)
        """
        return Flops(removed * 2 * tokens * weights.projections, weights.saved_in_attention(tokens, removed))

    def passes(self, kept: float) -> float:
        """Read and write both, before and after."""
        return 2 + 2 * kept


class KeysOnly(Scope):
    """Only the keys and values of self-attention merge, so there is nothing to unmerge."""

    merges_queries = False

    def before_attention(
        self, state: ForwardState, attention: SelfAttention, call: Arguments
    ) -> tuple[Arguments, Contexts]:
        """Merge its keys and values."""
        return attention.aware(call, _plans(state, attention))

    def merged_modules(self, site: MergeSite) -> Iterator[nn.Module]:
        """None: whatever its keys are, attention returns a row for every token, which a cache over steps may keep."""
        return iter(())

    def saved_flops(self, weights: SiteWeights, tokens: int, removed: float) -> Flops:
        """Half of the projections, if they come after the merge, and the removed keys.

        Examples:
            >>> weights = SiteWeights(channels=8, width=8, projections=256, rest=1024, text_width=0, itemsize=4)
            >>> KeysOnly().saved_flops(weights, 100, 0.5)
            Flops(linear=12800.0, attention=160000.0)
        """
        linear = removed * tokens * weights.projections if weights.takes_keys else 0.0
        return Flops(linear, removed * weights.attention_flops(tokens))

    def passes(self, kept: float) -> float:
        """Read the tokens, write the slots."""
        return 1 + kept


class AroundBlock(Scope):
    """The whole block, or several in a row, runs on merged tokens; every token takes the change of its slot."""

    spans_block = shares_merge = True

    def before_block(self, state: ForwardState, block: BlockCall, call: Arguments) -> Arguments:
        """Merge the tokens of the first block, and give every block rows for its slots."""
        assert state.plan is not None
        assert state.plans is not None
        refuse_hidden_states(block, call)
        if block.is_first:
            state.before = block.tokens(call)
            state.merged = merge(state.before, state.plan)
            call = block.with_tokens(call, state.merged)
        return gather_rows(call, block.signature, block.site, state.plans)

    def before_attention(
        self, state: ForwardState, attention: SelfAttention, call: Arguments
    ) -> tuple[Arguments, Contexts]:
        """Its tokens are slots already."""
        return attention.aware(call, _plans(state, attention))

    def after_block(self, state: ForwardState, block: BlockCall, returned: Any) -> Any:
        """Add what the last block has changed to the tokens that entered the first one."""
        if not block.is_last or state.plan is None or state.before is None or state.merged is None:
            return returned
        change = unmerge(block.output(returned) - state.merged, state.plan)
        return block.with_output(returned, state.before + change)

    def describe(self, name: str, segment: int) -> str:
        """With the number of blocks that share a merge."""
        return f"scope {name}" if segment == 1 else f"scope {name}, segment {segment}"

    def saved_flops(self, weights: SiteWeights, tokens: int, removed: float) -> Flops:
        """Everything that the removed tokens pass through, and everything between them."""
        return weights.saved_in_block(tokens, removed)

    def passes(self, kept: float) -> float:
        """Merge, unmerge, and two sums of tokens."""
        return 4 + 4 * kept


def _plans(state: ForwardState, attention: SelfAttention) -> BlockPlans:
    """The plans of the block that runs.

    Raises:
        ValueError: If none does: transformers checkpoints what is inside of the block's hooks.
    """
    if state.plans is None:
        raise ValueError(
            f"{attention.site.name}: its self-attention was called outside of its block, whose hooks make the plan, as "
            "gradient checkpointing inside of the block does: call gradient_checkpointing_disable(), or detach the "
            "session for training"
        )
    return state.plans


SCOPES: dict[str, Scope] = {
    "attention": AroundAttention(),
    "keys": KeysOnly(),
    "block": AroundBlock(),
    "progressive": Progressive(),
}
"""The scopes by the name that a recipe gives them."""
