"""One attached site, or several consecutive ones that share a merge: plain forward hooks around blocks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from catome_adapters.hooks.arguments import AttentionNeeds
from catome_adapters.hooks.attention import SelfAttention
from catome_adapters.hooks.between import Between, as_one
from catome_adapters.hooks.forward import ForwardState
from catome_adapters.hooks.host import Host
from catome_adapters.hooks.known import KnownCall, KnownCalls
from catome_adapters.hooks.memories import Memories
from catome_adapters.hooks.owner import HookOwner
from catome_adapters.hooks.pairs import PairsByCall
from catome_adapters.hooks.repeats import SegmentPasses
from catome_adapters.hooks.rules import MergeRules, policy_for
from catome_adapters.sites.call import Arguments, BlockCall
from catome_adapters.sites.plans import BlockPlans
from catome_adapters.sites.site import MergeSite
from catome_adapters.sites.weights import count_weights
from catome_core import Lattice, MergePlan, PlanKey, TokenGrid, extend, has_values


class LastCall:
    """The tokens of the last call, None before the first, and whether they were enough to gain time."""

    key: PlanKey | None = None
    pays_off = False


class Segment:
    """Merges the tokens of a segment: one site, or several whose blocks the host runs one after the other.

    The host gives the grid, the first block's tokens make the plan, and the scope decides what merges by it.

    Attributes:
        site: The first site, under a name for all of them.
        state: Of the forward pass that runs.
        pairs: What is remembered from step to step.
        lattice: Of the keys; None if tokens are matched.
        known: What follows from the shapes of a call of its own, or of one that is alike.
        last_calls: By plan, the tokens of the last call.
        blocks_per_plan: Number of blocks that share a plan.
    """

    def __init__(
        self, sites: Sequence[MergeSite], host: Host, rules: MergeRules, known: KnownCalls, undo: ExitStack
    ) -> None:
        self.sites, self.host, self.rules, self.scope = tuple(sites), host, rules, rules.scope
        self.site, self.state, self.between = as_one(self.sites), ForwardState(), Between(self.sites)
        undo.callback(self.between.remove)
        self.policy = policy_for(rules, self.sites)
        self.weights = count_weights(self.site)
        self.last_calls = [LastCall() for _ in (self.sites[:1] if self.scope.plans_ahead else self.sites)]
        self.blocks_per_plan = len(self.sites) // len(self.last_calls)
        names = [self.site.name] if self.scope.plans_ahead else [site.name for site in self.sites]
        device = next((weight.device for weight in self.site.block.parameters()), None)
        memories = Memories(names, self.policy, rules.seed, rules.matches_output, device)
        self.lattice, self.pairs = memories.lattice, PairsByCall(memories.make, self.state)
        self.passes = SegmentPasses(self.site.name, host.recorded)
        blocks = [BlockCall(site, site is self.sites[0], site is self.sites[-1]) for site in self.sites]
        alike = self.site.layout.extra_side, self.site.prefix, self.weights
        self.first, self.known = blocks[0], known.of_kind(alike, self.weights)
        undo.callback(self.pairs.forget)
        self.attentions = [self._enclose(site, module, undo) for site in self.sites for module in site.attentions]
        self.hooks = [BlockHooks(self, block, undo) for block in blocks]
        self.scope.install(self, blocks, undo)

    @property
    def never_ran(self) -> bool:
        """Whether the host has been called, and the first block never."""
        return self.last_calls[0].key is None and self.host.size is not None

    @property
    def is_too_small(self) -> bool:
        """Whether all of its calls in this step, in eager code, had sizes at which nothing merges in this run."""
        small = [known.key for known in self.known.kept.values() if self.known.stays_small(known)]
        return all(any(pairs.key is key for key in small) for pairs in self.pairs)

    def before_block(self, block: BlockCall, call: Arguments) -> Arguments:
        """Before a block: the first one's tokens make the plan."""
        state = self.state
        if block.is_first:
            self._begin_pass(block.tokens(call))
        elif self.host.is_recorded:
            self.passes.check()
        state.plans = None if state.plan is None else BlockPlans(state.plan, extend(state.plan, *block.text(call)))
        return self.scope.before_block(state, block, call) if state.active and self.scope.spans_block else call

    def after_block(self, block: BlockCall, returned: Any) -> Any:
        """After a block: the last one ends the pass."""
        state = self.state
        # A block that was skipped may have been called with the tokens of another one.
        if block.is_last and not state.attended:
            self.pairs.current[0].output_missed = True
        if block.is_last and state.match_output and self.scope.spans_block:
            self._match_output(block.output(returned))
        if state.active and self.scope.spans_block:
            returned = self.scope.after_block(state, block, returned)
        if block.is_last:
            state.plan = state.plans = state.before = state.merged = state.repeated = None
        return returned

    def plan(self, index: int, tokens: Tensor, grid: TokenGrid) -> MergePlan | None:
        """The plan for tokens (batch, tokens, channels); None to leave them alone, or to match the output first."""
        known = self.known.of_tokens(PlanKey(len(tokens), grid, tokens.device, tokens.dtype))
        return self._plan(index, known, tokens)

    def _plan(self, index: int, known: KnownCall, tokens: Tensor) -> MergePlan | None:
        if not self.host.is_recorded:
            return self._make_plan(index, known, tokens)
        if self.state.repeated is not None:
            self.pairs.current[0].output_missed |= self.state.match_output
            self.state.match_output = False
            return self.state.repeated.plans[index]
        self.passes.current.plans[index] = plan = self._make_plan(index, known, tokens)
        return plan

    def _make_plan(self, index: int, known: KnownCall, tokens: Tensor) -> MergePlan | None:
        pairs, key, merged = self.pairs.current[index], known.key, self.pairs.merging and known.pays_off
        # Only written here: compiled code has one graph for every value that it reads, and for the order of reading.
        self.last_calls[index].key, self.last_calls[index].pays_off = key, known.pays_off
        if has_values(tokens):
            pairs.key, pairs.merged = key, merged
        self.state.match_output = merged and pairs.waits_for_output(key)
        if self.state.match_output or not merged:
            return None
        return pairs.plan_for(tokens[:, known.front : tokens.shape[1] - known.back], key.grid)

    def __repr__(self) -> str:
        return f"Segment({self.site.name!r}, {len(self.sites)} blocks, {type(self.scope).__name__})"

    def _begin_pass(self, tokens: Tensor) -> None:
        if not self.between.is_single and not torch.compiler.is_compiling():
            self.between.refuse_checkpointing()
        state, size = self.state, self.host.size or self.host.refuse_block(self.site.name)
        repeated = self.passes.begin(tokens, size) if self.host.is_recorded else None
        shapes = (repeated.size if repeated else size, tokens.shape, tokens.dtype, tokens.device)
        known = None if torch.compiler.is_compiling() else self.known.kept.get(shapes)
        known = known or self.known.work_out(self.first, shapes)
        state.repeated, state.attended = repeated, False
        # What a pass that failed has left.
        state.block_plan = state.recorded = None
        state.front, state.length, state.grid = known.front, tokens.shape[1], known.key.grid
        state.plan, state.active = None, not self.scope.plans_ahead
        if self.scope.plans_ahead:
            plan = self._plan(0, known, tokens)
            state.plan = None if plan is None else extend(plan, known.front, known.back)
            state.active = plan is not None

    def _match_output(self, tokens: Tensor) -> None:
        """Make the plan from what came out of the scope: tokens (batch, tokens, channels) of the block's sequence."""
        pairs, key, self.state.match_output = self.pairs.current[0], self.last_calls[0].key, False
        assert key is not None
        tokens = tokens[:, self.state.front : self.state.front + key.grid.tokens]
        # Under autocast the output has another dtype than the input, by which the plan is found again.
        pairs.plan_for(tokens.to(key.dtype), key.grid)

    def _enclose(self, site: MergeSite, module: nn.Module, undo: ExitStack) -> SelfAttention:
        lattice = self.policy if isinstance(self.policy, Lattice) else None
        needs = AttentionNeeds(self.rules.proportional, self.policy.pads, not self.scope.merges_queries, lattice)
        matched = self.rules.matches_output and not self.scope.spans_block and module is self.site.attention
        on_output = self._match_output if matched else None
        attention = SelfAttention(site, module, self.scope, self.state, needs, on_output)
        undo.callback(attention.remove)
        return attention


class BlockHooks(HookOwner):
    """The hooks around one block of a segment.

    Attributes:
        settled: Whether they do nothing. Compiled code, in which more pays off, ends it first: no graph depends on it.
    """

    settled = False

    def __init__(self, segment: Segment, block: BlockCall, undo: ExitStack) -> None:
        self.segment, self.block, module = segment, block, block.site.block
        undo.callback(module.register_forward_pre_hook(self._before, with_kwargs=True).remove)
        undo.callback(module.register_forward_hook(self._after).remove)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        if torch.compiler.is_compiling():
            self.settled = False
        return None if self.settled or self.is_copy else self.segment.before_block(self.block, (args, kwargs))

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return output if self.settled or self.is_copy else self.segment.after_block(self.block, output)
