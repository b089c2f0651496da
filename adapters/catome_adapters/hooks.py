"""One attached site, or a segment of them: plain forward hooks around blocks and their self-attention."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from catome_adapters.arguments import Arguments
from catome_adapters.arithmetic import count_work
from catome_adapters.attending import AttentionHooks, KeyedAttentionHooks, Pass
from catome_adapters.calls import BlockCalls
from catome_adapters.hosts import GridReader
from catome_adapters.pairs import SitePairs
from catome_adapters.prediction import machine_for, predict
from catome_adapters.recipe import MergeRecipe
from catome_adapters.report import SiteView
from catome_adapters.segments import as_one, refuse_between
from catome_adapters.sites import MergeSite
from catome_core import MergePlan, PairCache, TokenGrid
from catome_core.cache import PlanKey

# Guidance makes up to four calls of the network in a step; whoever calls it more often than that is timing it.
MOST_CALLS = 4


class BlockHooks:
    """Hooks on one block of a segment; first and last block begin and end it."""

    def __init__(self, segment: SiteHooks, calls: BlockCalls) -> None:
        self.segment, self.calls = segment, calls
        self.handle: Any = calls.site.block.register_forward_pre_hook(self._before, with_kwargs=True)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        return self.segment.enter_block(self.calls, (args, kwargs))


class SiteHooks:
    """Merges the tokens of a segment: one site, or several whose blocks the host runs one after the other.

    The reader tells the grid, the first block's input (or the output, see `MergeRecipe.metric`) makes the plan, the
    self-attention of every block uses it.
    """

    def __init__(self, sites: Sequence[MergeSite], recipe: MergeRecipe, seed: int, reader: GridReader) -> None:
        self.sites, self.recipe, self.seed, self.reader = tuple(sites), recipe, seed, reader
        self.site, self.current = as_one(self.sites), Pass()
        self.policy = replace(recipe.policy, shared=recipe.policy.shared or self._must_share())
        self.merging, self.work = True, count_work(self.site)
        self.last: PlanKey | None = None
        self.context: str | None = None
        self.counts: Counter[str | None] = Counter()
        self.kept: dict[tuple[str | None, int], SitePairs] = {}
        self.pairs = self._pairs_for(None, 1)
        self.calls = [BlockCalls(site, leads=site is self.sites[0]) for site in self.sites]
        self.attentions: list[AttentionHooks] = []
        self.handles: list[Any] = []
        self._install()

    @property
    def cache(self) -> PairCache:
        """The pairs in use."""
        return self.pairs.cache

    @property
    def is_idle(self) -> bool:
        """Whether the host has been called, and the first block never."""
        return self.last is None and bool(self.reader.shape)

    def forget(self) -> None:
        """Drop what a forward pass leaves behind, also one that did not finish."""
        self.current.clear()
        for pairs in self.kept.values():
            pairs.forget()

    def reset(self) -> None:
        """Begin a new run, in which steps merge until told not to."""
        self.merging = True
        self.counts.clear()
        self.enter(self.context)
        self.current.clear()
        for pairs in self.kept.values():
            pairs.reset()

    def enter(self, context: str | None, call: int = 1) -> None:
        """From now on use the pairs of this context's first call in a step, or of a later one."""
        self.pairs.unmatched |= self.current.awaits_output
        self.current.clear()
        # Memory that a compiled call allocated may be gone in the next call, which other pairs make.
        self.pairs.cache.settle()
        self.context, self.pairs = context, self._pairs_for(context, min(call, MOST_CALLS))

    def begin_call(self) -> None:
        """Before a call of the host, where that can be seen: a second one in a step has pairs of its own."""
        self.counts[self.context] += 1
        if self.counts[self.context] > 1:
            self.enter(self.context, self.counts[self.context])

    def begin_step(self, checkpoint: bool, merging: bool) -> None:
        """Before a step: recompute or reuse, or leave the tokens alone."""
        for attention in self.attentions:
            attention.begin_step()
        self.counts.clear()
        self.enter(self.context)
        self.merging = merging
        for pairs in self.kept.values() if merging else ():
            pairs.begin_step(checkpoint)

    def finish_step(self) -> list[SitePairs]:
        """After a step: note what the plans are; those that were recomputed in this step."""
        self.enter(self.context)
        return [pairs for pairs in self.kept.values() if pairs.finish_step(self.merging)]

    def remove(self) -> None:
        """Take every hook off again."""
        for handle in (*self.handles, *self.attentions):
            handle.remove()
        self.forget()

    def views(self) -> list[SiteView]:
        """What the report shows of these sites: the last call, if there was one."""
        if self.last is None:
            return [SiteView(site) for site in self.sites]
        whole = not self._gains(self.last)
        return [SiteView(site, self.last.grid, self.last.batch, whole) for site in self.sites]

    def enter_block(self, calls: BlockCalls, call: Arguments) -> Arguments:
        """Before a block: the first one's tokens make the plan, and merge if whole blocks do."""
        first = self.calls[0]
        if calls.leads:
            self._open(call)
        else:
            calls.lie(first.span, call)
        plan = self.current.plan
        if plan is None or self.recipe.scope != "block":
            return call
        if calls.leads:
            tokens = calls.tokens(call)
            merged = calls.span.merge(tokens, plan)
            self.current.entry = tokens, merged
            call = calls.with_tokens(call, merged)
        return calls.follow(call, plan)

    def _install(self) -> None:
        self.handles = [BlockHooks(self, calls).handle for calls in self.calls]
        for calls in self.calls:
            self.attentions += [self._listen(one, calls) for one in calls.site.attentions]
        if self.recipe.metric == "output" and self.recipe.scope != "block":
            self.handles.append(self.sites[0].attention.register_forward_hook(self._match_attended))
        self.handles.append(self.sites[-1].block.register_forward_hook(self._leave_blocks))
        if len(self.sites) > 1:
            refusal = partial(refuse_between, self.site.name, self.reader.signature)
            self.handles.append(self.reader.host.register_forward_pre_hook(refusal, with_kwargs=True))
        close = getattr(self.reader.measure, "close", None)
        if len(self.sites) > 1 and close is not None:
            self.handles.append(close(self.site.name))

    def _listen(self, attention: nn.Module, calls: BlockCalls) -> AttentionHooks:
        hooks = KeyedAttentionHooks if calls.layout.keys_apart else AttentionHooks
        return hooks(attention, calls, self.recipe, self.current)

    def _open(self, call: Arguments) -> None:
        if not torch.compiler.is_compiling():
            self._refuse_checkpointing()
        self.reader.refuse_silence(self.site.name)
        grid = TokenGrid(self.reader.shape, self.recipe.strides(self.reader.shape), self.site.prefix)
        self.calls[0].measure(call, grid)
        self.current.plan = self._choose_plan(self.calls[0].tokens(call), grid)

    def _choose_plan(self, tokens: Tensor, grid: TokenGrid) -> MergePlan | None:
        """The plan for these tokens; None to leave them alone, perhaps because the output is to be matched first."""
        self.pairs.seen = self.last = key = PlanKey(len(tokens), grid, tokens.device, tokens.dtype)
        self.current.attended = False
        # In this order: compiled code has a graph for every value that it reads.
        self.pairs.merges = merges = self.merging and self._gains(key)
        self.current.awaits_output = merges and self.recipe.metric == "output" and not self.cache.holds(key)
        if self.current.awaits_output or not merges:
            return None
        plan = self.cache(self.calls[0].span.within(tokens), grid)
        return None if self.policy.is_identity(grid, self.cache.capacity) else plan

    def _gains(self, key: PlanKey) -> bool:
        """Whether merging pays at this size, or was asked for at any. A constant to the compiler."""
        if self.recipe.levels != "auto":
            return True
        machine = machine_for(key.device.type)
        return predict(self.work, key.grid, key.batch, self.recipe, machine, stepped=self.site.stepped).gain > 0

    def _match_attended(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen = self.pairs.seen
        if self.current.awaits_output and seen is not None:
            self._match_output(self.calls[0].attended(output, seen.grid), seen)

    def _match_output(self, tokens: Tensor, key: PlanKey) -> None:
        self.current.awaits_output = False
        # Under autocast the output has another dtype than the input, by which the plan is found again.
        self.cache(tokens.to(key.dtype), key.grid)

    def _leave_blocks(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        plan, entry, seen = self.current.plan, self.current.entry, self.pairs.seen
        self.current.plan = self.current.entry = None
        calls = self.calls[-1]
        if not self.current.attended:
            # The block was skipped, and may have been called with the tokens of another one.
            self.pairs.unmatched = True
        if self.current.awaits_output and seen is not None:
            self._match_output(calls.span.within(calls.output(output)), seen)
        if plan is None or entry is None:
            return output
        tokens, merged = entry
        return calls.with_output(output, tokens + calls.span.unmerge(calls.output(output) - merged, plan))

    def _must_share(self) -> bool:
        """Keys merge behind the rotary embedding, which then needs not follow."""
        return self.recipe.scope != "keys" and any(site.layout.shared for site in self.sites)

    def _pairs_for(self, context: str | None, call: int) -> SitePairs:
        key = context, call
        if key not in self.kept:
            labels = [label for label in (context, f"call {call}" if call > 1 else None) if label]
            name = f"{self.site.name} ({', '.join(labels)})" if labels else self.site.name
            self.kept[key] = SitePairs(name, self._new_cache(), self.recipe.metric)
        return self.kept[key]

    def _new_cache(self) -> PairCache:
        # The same seed in every context: what two calls draw is what one batch of both would.
        generator = torch.Generator().manual_seed(self.seed) if self.policy.destination == "random" else None
        return PairCache(self.policy, generator)

    def _refuse_checkpointing(self) -> None:
        told = (self.reader.host, self.reader.measure)
        checkpointing = any(getattr(one, "gradient_checkpointing", False) for one in told)
        if len(self.sites) > 1 and torch.is_grad_enabled() and checkpointing:
            raise ValueError(
                f"{self.site.name} is a segment, and gradient checkpointing would repeat its blocks one by one, "
                "without the merge that they share; call disable_gradient_checkpointing(), or use segment=1"
            )
