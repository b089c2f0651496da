"""One attached site, or a segment of them: plain forward hooks around blocks and their self-attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from catome_adapters.arithmetic import count_work
from catome_adapters.prediction import machine_for, predict
from catome_adapters.recipe import MergeRecipe
from catome_adapters.report import SiteState, SiteView
from catome_adapters.segments import as_one
from catome_adapters.sites import MergeSite
from catome_core import MergePlan, PairCache, TokenGrid, attention_bias, gather_anchors, merge, unmerge
from catome_core.cache import PlanKey
from catome_core.planning import wanted_places

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class SiteHooks:
    """Merges the tokens of a segment: one site, or several whose blocks the host runs one after the other.

    The host tells the grid, the first block's input (or the output, see `MergeRecipe.metric`) makes the plan, the
    self-attention of every block uses it.
    """

    def __init__(
        self, sites: Sequence[MergeSite], recipe: MergeRecipe, seed: int, before_call: Callable[[], None]
    ) -> None:
        generator = torch.Generator().manual_seed(seed) if recipe.policy.destination == "random" else None
        self.sites, self.recipe, self.before_call = tuple(sites), recipe, before_call
        self.site = as_one(self.sites)
        self.overdue, self.merging = False, True
        self.work, self.last = count_work(self.site), None
        self.cache = PairCache(recipe.policy, generator)
        self.state = SiteState.unknown(self.site.name)
        self.grid = TokenGrid((1, 1), recipe.stride)
        self.forget()
        self.handles = self._install()
        self.key_projection: nn.Module | None = None
        self.key_handle: Any = None
        self._follow_keys()

    @property
    def ran(self) -> bool:
        """Whether the blocks were called in this step."""
        return self.seen is not None

    def forget(self) -> None:
        """Drop what a forward pass leaves behind, also one that did not finish."""
        self.seen: PlanKey | None = None
        self.plan: MergePlan | None = None
        self.entry: tuple[Tensor, Tensor] | None = None
        self.anchored: Tensor | None = None
        self.awaits_output = False

    def reset(self) -> None:
        """Begin a new run: no plan, the policy's capacity, the seed's destinations; steps merge until told not to."""
        self.forget()
        self.overdue, self.merging = False, True
        self.cache.reset()
        self.state = SiteState.unknown(self.site.name)

    def begin_step(self, checkpoint: bool, merging: bool) -> None:
        """Before a step: recompute or reuse, or leave the tokens alone."""
        self._follow_keys()
        self.merging = merging
        if merging:
            self.cache.refresh = checkpoint or self.overdue or not self.cache.filled

    def remove(self) -> None:
        """Take every hook off again."""
        for handle in self.handles:
            handle.remove()
        if self.key_handle is not None:
            self.key_handle.remove()
        self.forget()

    def finish_step(self) -> bool:
        """After a step: note what the plan is, and whether it was recomputed in this step."""
        cache, key, merges = self.cache, self.seen, self.seen is not None and self._merges(self.seen)
        # A site that sat a checkpoint out has pairs from before it: it recomputes when it runs again.
        self.overdue = cache.refresh and (key is None or self.awaits_output or self.merging > merges)
        self.forget()
        cache.settle()
        if key is None or (merges and not cache.filled):
            return False
        fresh = merges and (cache.refresh or key != self.state.key)
        self.state = self._describe(key, fresh, merges)
        return fresh

    def _describe(self, key: PlanKey, fresh: bool, merges: bool) -> SiteState:
        if not merges:
            return _whole(self.site.name, key, torch.full((key.batch,), key.grid.sources))
        cache, wanted = self.cache, self.state.wanted
        if fresh:
            wanted = wanted_places(cache.match(), cache.policy.threshold)
        if fresh and self.recipe.metric == "output":
            return _whole(self.site.name, key, wanted)
        return SiteState(self.site.name, key, cache.policy.spare, cache.capacity, wanted)

    def views(self) -> list[SiteView]:
        """What the report shows of these sites: the last call, if there was one."""
        if self.last is None:
            return [SiteView(site) for site in self.sites]
        whole = not self._gains(self.last)
        return [SiteView(site, self.last.grid, self.last.batch, whole) for site in self.sites]

    @staticmethod
    def attached(site: MergeSite) -> bool:
        """Whether a session is at work on this site."""
        owners = [getattr(hook, "__self__", None) for hook in site.attention._forward_pre_hooks.values()]
        return any(isinstance(owner, SiteHooks) for owner in owners)

    def _install(self) -> list[Any]:
        first, last = self.sites[0].block, self.sites[-1].block
        attentions = [site.attention for site in self.sites]
        handles = [self.site.host.register_forward_pre_hook(self._see_grid, with_kwargs=True)]
        handles.append(first.register_forward_pre_hook(self._before_blocks, with_kwargs=True))
        handles += [each.register_forward_pre_hook(self._before_attention, with_kwargs=True) for each in attentions]
        if self.recipe.scope == "block":
            handles.append(last.register_forward_hook(self._after_blocks))
        else:
            handles.append(attentions[0].register_forward_hook(self._after_attention))
        return handles

    def _see_grid(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.compiler.is_compiling():
            self.before_call()
            self._refuse_checkpointing(module)
        image = args[0] if args else kwargs["hidden_states"]
        self.grid = TokenGrid(tuple(image.shape[-2:]), self.recipe.stride)

    def _before_blocks(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        tokens = args[0]
        self.plan = self._choose_plan(tokens)
        if self.recipe.scope != "block" or self.plan is None:
            return args, kwargs
        merged = merge(tokens, self.plan)
        self.entry = tokens, merged
        return (merged, *args[1:]), kwargs

    def _choose_plan(self, tokens: Tensor) -> MergePlan | None:
        """The plan for these tokens; None to leave them alone, perhaps because the output is to be matched first."""
        self.seen = self.last = key = PlanKey(len(tokens), self.grid, tokens.device, tokens.dtype)
        # In this order: compiled code has a graph for every value that it reads.
        merges = self._merges(key)
        self.awaits_output = merges and self.recipe.metric == "output" and not self.cache.holds(key)
        if self.awaits_output or not merges:
            return None
        plan = self.cache(tokens, self.grid)
        return None if self.recipe.policy.is_identity(self.grid, self.cache.capacity) else plan

    def _merges(self, key: PlanKey) -> bool:
        return self.merging and self._gains(key)

    def _gains(self, key: PlanKey) -> bool:
        """Whether merging pays at this size, or was asked for at any. A constant to the compiler."""
        if self.recipe.levels != "auto":
            return True
        return predict(self.work, key.grid, key.batch, self.recipe, machine_for(key.device.type)).gain > 0

    def _match_output(self, output: Tensor) -> None:
        if self.awaits_output and self.seen is not None:
            self.awaits_output = False
            # Under autocast the output has another dtype than the input, by which the plan is found again.
            self.cache(output.to(self.seen.dtype), self.grid)

    def _before_attention(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        if self.plan is None:
            return args, kwargs
        tokens = args[0]
        kwargs = kwargs | {"attention_mask": self._bias(tokens, self.plan, kwargs.get("attention_mask"))}
        if self.recipe.scope == "keys":
            self._refuse_fused(module)
            self.anchored = gather_anchors(tokens, self.plan)
            return args, kwargs | {"encoder_hidden_states": merge(tokens, self.plan)}
        if self.recipe.scope == "attention":
            args = (merge(tokens, self.plan), *args[1:])
        return args, kwargs

    def _follow_keys(self) -> None:
        """With scope="keys", keys are those of the anchors, since a mean of keys is shorter than each of them.

        Adapters such as LoRA put another module in the projection's place, so it is looked up before every step.
        """
        projection = getattr(self.site.attention, "to_k", None)
        if self.recipe.scope != "keys" or projection is None or projection is self.key_projection:
            return
        if self.key_handle is not None:
            self.key_handle.remove()
        self.key_projection = projection
        self.key_handle = projection.register_forward_pre_hook(self._before_keys)

    def _before_keys(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return args if self.anchored is None else (self.anchored, *args[1:])

    def _after_attention(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        plan, self.plan, self.anchored = self.plan, None, None
        self._match_output(output)
        return output if plan is None or self.recipe.scope == "keys" else unmerge(output, plan)

    def _after_blocks(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        plan, entry = self.plan, self.entry
        self.plan = self.entry = None
        self._match_output(output)
        if plan is None or entry is None:
            return output
        tokens, merged = entry
        return tokens + unmerge(output - merged, plan)

    def _refuse_checkpointing(self, host: nn.Module) -> None:
        if len(self.sites) > 1 and torch.is_grad_enabled() and getattr(host, "gradient_checkpointing", False):
            raise ValueError(
                f"{self.site.name} is a segment, and gradient checkpointing would repeat its blocks one by one, "
                "without the merge that they share; call disable_gradient_checkpointing(), or use segment=1"
            )

    def _refuse_fused(self, attention: nn.Module) -> None:
        # Not `fused_projections`: diffusers leaves it True when it unfuses.
        if type(getattr(attention, "processor", None)).__name__.startswith("Fused"):
            raise ValueError(
                f"{self.site.name} has fused projections, which take queries and keys from the same tokens; "
                "call unfuse_qkv_projections(), or use scope='attention'"
            )

    def _bias(self, tokens: Tensor, plan: MergePlan, mask: Tensor | None) -> Tensor | None:
        if mask is not None:
            raise ValueError(
                f"{self.site.name} was given an attention_mask of shape {tuple(mask.shape)} for its self-attention, "
                "which does not fit merged keys; detach the session for masked inputs, or leave the mask out"
            )
        if self.recipe.policy.spare == "fill" and not self.recipe.proportional:
            return None
        bias = attention_bias(plan, dtype=tokens.dtype, proportional=self.recipe.proportional)
        return bias[:, 0].expand(len(tokens), -1, -1)


def _whole(name: str, key: PlanKey, wanted: Tensor | None) -> SiteState:
    """A step that ran unmerged: every source kept its place."""
    return SiteState(name, key, "fill", None, wanted)
