"""What a scope is: what merging does to the blocks of a segment, at four moments of a forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

from torch import Tensor, nn

from catome_adapters.hooks.attention import Contexts, SelfAttention
from catome_adapters.hooks.forward import ForwardState
from catome_adapters.sites.call import Arguments, BlockCall
from catome_adapters.sites.site import MergeSite
from catome_adapters.sites.weights import Flops, SiteWeights
from catome_core import AdaptiveMerge, Lattice, MergePlan, TokenGrid


class Planner(Protocol):
    """Makes plans for the blocks of a segment."""

    state: ForwardState

    def plan(self, index: int, tokens: Tensor, grid: TokenGrid) -> MergePlan | None:
        """The plan of the block with this index for tokens (batch, tokens, channels); None: leave them alone."""
        ...


class Scope:
    """What merging does to the blocks of a segment; by default nothing.

    To add a scope, write a class of this kind and put an instance of it into `SCOPES`. Its `before_block` and
    `after_block` are called if it `spans_block`.

    Attributes:
        merges_queries: Whether the queries of self-attention are slots, so that everything with one row per token has
            to follow.
        spans_block: Whether all of the block runs on slots, and not only its self-attention.
        plans_ahead: Whether the plan is made from the first block's input, before the block runs.
        predictable: Whether the figures of a single block say what it gains.
        shares_merge: Whether consecutive blocks can share a merge.
    """

    merges_queries = True
    spans_block = False
    plans_ahead = True
    predictable = True
    shares_merge = False

    def install(self, planner: Planner, blocks: Sequence[BlockCall], undo: ExitStack) -> None:
        """Install hooks of its own; `undo` gets what removes them."""

    def before_block(self, state: ForwardState, block: BlockCall, call: Arguments) -> Arguments:
        """The arguments that the block is called with; `state.plans` are those of this block."""
        return call

    def before_attention(
        self, state: ForwardState, attention: SelfAttention, call: Arguments
    ) -> tuple[Arguments, Contexts]:
        """The arguments that self-attention is called with, and the contexts that are open while it runs."""
        return call, ()

    def after_attention(self, state: ForwardState, attention: SelfAttention, returned: Any) -> Any:
        """The result of self-attention."""
        return returned

    def after_block(self, state: ForwardState, block: BlockCall, returned: Any) -> Any:
        """The result of the block."""
        return returned

    def saved_flops(self, weights: SiteWeights, tokens: int, removed: float) -> Flops:
        """FLOPs that a site saves on one sample when this share of its tokens is removed."""
        raise NotImplementedError

    def passes(self, kept: float) -> float:
        """How often tokens are read or written to merge and unmerge, at this share of kept tokens."""
        raise NotImplementedError

    def blocks_per_segment(self, requested: int, sites: int) -> int:
        """How many consecutive blocks at most share a merge."""
        return requested

    def recipe_error(self, policy: AdaptiveMerge | Lattice, segment: int) -> str | None:
        """Why a recipe with this policy and segment cannot have this scope; it continues a sentence that names it."""
        if segment > 1 and not self.shares_merge:
            return f"segment={segment}, and has nothing to share between blocks; use scope='block', or segment=1"
        if isinstance(policy, Lattice) and self.merges_queries:
            return f"{policy}, which leaves queries whole; use scope='keys', or an AdaptiveMerge"
        return None

    def describe(self, name: str, segment: int) -> str:
        """The scope in the first line of a report; `name` is what the recipe calls it."""
        return f"scope {name}"

    def site_error(self, site: MergeSite) -> str | None:
        """Why this site cannot have this scope."""
        return None

    def merged_modules(self, site: MergeSite) -> Iterator[nn.Module]:
        """The modules that run on merged tokens, whose results no other step can use."""
        parts = (site.block,) if self.spans_block else site.attentions
        return (module for part in parts for module in part.modules())
