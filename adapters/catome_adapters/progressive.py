"""ToMe's own mode (Bolya et al. 2023): every block of a model merges some more, and only the last one unmerges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from catome_adapters.arguments import Arguments
from catome_adapters.attending import AttentionHooks, Pass
from catome_adapters.calls import BlockCalls
from catome_adapters.hooks import SiteHooks
from catome_adapters.hosts import GridReader
from catome_adapters.pairs import SitePairs
from catome_adapters.recipe import MergeRecipe
from catome_adapters.report import SiteView
from catome_adapters.sites import MergeSite
from catome_core import TokenGrid, unmerge
from catome_core.cache import PlanKey
from catome_core.composing import compose, in_order, merge_weighted
from catome_core.planning import MergePlan
from catome_core.watching import KeyWatch


class WatchedAttentionHooks(AttentionHooks):
    """Keeps the keys of a self-attention for the merge behind it."""

    def __init__(self, module: nn.Module, calls: BlockCalls, recipe: MergeRecipe, current: Pass) -> None:
        super().__init__(module, calls, recipe, current)
        self.watch: KeyWatch | None = None

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Tell and watch."""
        call = super().before(module, args, kwargs)
        self.watch = KeyWatch()
        self.watch.__enter__()
        return call

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Stop both, also after an error, in the order in which contexts close."""
        watch, self.watch = self.watch, None
        if watch is not None:
            watch.__exit__(None, None, None)
            self.current.keys = watch.keys
        output = super().after(module, args, output)
        if output is not None and self.current.keys is None:
            self._refuse_unwatched()
        return output

    def _refuse_unwatched(self) -> None:
        raise ValueError(
            f"{self.calls.site.name}: {type(self.module).__name__} did not call scaled_dot_product_attention, by whose "
            'keys progressive=True tells what merges: switch to fused attention, or use RECIPES["vit"]'
        )


class FeedForwardHooks:
    """Hooks on the second half of a block, which runs on fewer slots than the first.

    The block adds what its feed-forward returns to the tokens that attention has left, out of any hook's reach. So it
    is unmerged for this sum, and the sum merges: by the linearity of the mean, what the merged tokens would sum to.
    """

    def __init__(self, chain: ProgressiveHooks, calls: BlockCalls) -> None:
        self.chain, self.calls = chain, calls
        block = calls.site.block
        parts = [block.get_submodule(name) for name in calls.layout.feed_forward]
        self.handles = [part.register_forward_pre_hook(self._enter) for part in parts]
        self.handles += [parts[-1].register_forward_hook(self._unmerge), block.register_forward_hook(self._leave)]

    def remove(self) -> None:
        """Take every hook off again."""
        for handle in self.handles:
            handle.remove()

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.chain.merge_more(self.calls, args[0]), *args[1:])

    def _unmerge(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        further = self.chain.current.further
        return output if further is None else unmerge(output, further)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return self.chain.leave_block(self.calls, output)


class ProgressiveHooks(SiteHooks):
    """Merges between attention and feed-forward of every block of a chain, on top of what the blocks before merged.

    The keys of the block's attention tell which. Every other token of the sequence is a destination, since there is no
    grid any more; slots stay in the order of the picture. Sizes, masks and rotary rows are those of the whole way from
    the model's tokens. After the last block every token gets the value of its slot: so pooling over tokens weighs
    every slot by its size, and the model's features keep their length.
    """

    def __init__(self, sites: Sequence[MergeSite], recipe: MergeRecipe, seed: int, reader: GridReader) -> None:
        super().__init__(sites, recipe, seed, reader)
        self.kept = {(None, place): self._pairs_of(site) for place, site in enumerate(self.sites, 1)}
        self.lasts: dict[int, PlanKey] = {}

    def views(self) -> list[SiteView]:
        """What the report shows of these blocks: each has fewer tokens than the one before."""
        keys = [self.lasts.get(place) for place, _ in enumerate(self.sites, 1)]
        return [
            SiteView(site) if key is None else SiteView(site, key.grid, key.batch)
            for site, key in zip(self.sites, keys, strict=True)
        ]

    def enter_block(self, calls: BlockCalls, call: Arguments) -> Arguments:
        """Before a block: what follows its tokens follows the whole way."""
        if calls.leads:
            self._begin(call)
        return call if self.current.plan is None else calls.follow(call, self.current.plan)

    def merge_more(self, calls: BlockCalls, tokens: Tensor) -> Tensor:
        """Behind attention: merge some more of the tokens that it has left; once, wherever the block has its norm."""
        keys, self.current.keys = self.current.keys, None
        if keys is None:
            return tokens
        place = self.calls.index(calls) + 1
        self.pairs = self.kept[None, place]
        grid = TokenGrid((1, tokens.shape[1] - self.site.prefix), (1, 2), self.site.prefix)
        plan = self._choose_plan(keys.mean(1), grid)
        assert self.last is not None
        self.lasts[place] = self.last
        if plan is None:
            return tokens
        # So that in the next block, too, every other token in the order of the picture is a destination.
        self.current.further = in_order(plan)
        return self._merge(tokens, self.current.further)

    def leave_block(self, calls: BlockCalls, output: Any) -> Any:
        """After a block: its output merges as its feed-forward has, and the whole way is one plan again."""
        further, before = self.current.further, self.current.plan
        if further is None:
            return output
        merged = self._merge(calls.output(output), further)
        self.current.further = None
        self.current.plan = further if before is None else compose(before, further)
        return calls.with_output(output, merged)

    def _merge(self, tokens: Tensor, further: MergePlan) -> Tensor:
        before = self.current.plan
        return merge_weighted(tokens, torch.ones_like(further.slot) if before is None else before.size, further)

    def _install(self) -> None:
        # Hooks run in the order in which they came: the last block merges before it unmerges.
        halves = [FeedForwardHooks(self, calls) for calls in self.calls]
        super()._install()
        self.handles += halves

    def _listen(self, attention: nn.Module, calls: BlockCalls) -> AttentionHooks:
        return WatchedAttentionHooks(attention, calls, self.recipe, self.current)

    def _begin(self, call: Arguments) -> None:
        if not torch.compiler.is_compiling():
            self._refuse_checkpointing()
        self.current.clear()
        self.calls[0].measure(call, TokenGrid(self.reader.shape, 1, self.site.prefix))

    def _gains(self, key: PlanKey) -> bool:
        """Later blocks gain from what earlier ones merge, which no block's own figures tell."""
        return True

    def _leave_blocks(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        plan, calls = self.current.plan, self.calls[-1]
        self.current.clear()
        return output if plan is None else calls.with_output(output, unmerge(calls.output(output), plan))

    def _pairs_of(self, site: MergeSite) -> SitePairs:
        return SitePairs(site.name, self._new_cache(), self.recipe.metric)
