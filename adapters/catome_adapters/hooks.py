"""One attached site: plain forward hooks around a block and its self-attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from catome_adapters.recipe import MergeRecipe
from catome_adapters.report import SiteState
from catome_adapters.sites import MergeSite
from catome_core import MergePlan, PairCache, TokenGrid, attention_bias, merge, unmerge
from catome_core.planning import wanted_places

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class SiteHooks:
    """Merges the tokens of one site. The host tells the grid, the block's input makes the plan, attention uses it."""

    def __init__(self, site: MergeSite, recipe: MergeRecipe, seed: int, before_call: Callable[[], None]) -> None:
        generator = torch.Generator().manual_seed(seed) if recipe.policy.destination == "random" else None
        self.site, self.recipe, self.before_call = site, recipe, before_call
        self.overdue = False
        self.cache = PairCache(recipe.policy, generator)
        self.state = SiteState.unknown(site.name)
        self.grid = TokenGrid((1, 1), recipe.stride)
        self.forget()
        self.handles = self._install()

    def forget(self) -> None:
        """Drop what a forward pass leaves behind, also one that did not finish."""
        self.ran = False
        self.plan: MergePlan | None = None
        self.tokens: Tensor | None = None

    def reset(self) -> None:
        """Begin a new run: no plan, the policy's capacity, the seed's destinations."""
        self.forget()
        self.overdue = False
        self.cache.reset()
        self.state = SiteState.unknown(self.site.name)

    def begin_step(self, checkpoint: bool) -> None:
        """Before a step: recompute or reuse."""
        self.cache.refresh = checkpoint or self.overdue or not self.cache.filled

    def remove(self) -> None:
        """Take every hook off again."""
        for handle in self.handles:
            handle.remove()
        self.forget()

    def finish_step(self) -> bool:
        """After a step: note what the plan is, and whether it was recomputed in this step."""
        cache, before, ran = self.cache, self.state.key, self.ran
        self.forget()
        # A site that sat a checkpoint out has pairs from before it: it recomputes when it runs again.
        self.overdue = not ran and cache.refresh
        cache.settle()
        if not ran or not cache.filled:
            return False
        fresh = cache.refresh or cache.key != before
        wanted = wanted_places(cache.match(), cache.policy.threshold) if fresh else self.state.wanted
        self.state = SiteState(self.site.name, cache.key, cache.policy.spare, cache.capacity, wanted)
        return fresh

    @staticmethod
    def attached(site: MergeSite) -> bool:
        """Whether a session is at work on this site."""
        owners = [getattr(hook, "__self__", None) for hook in site.block._forward_pre_hooks.values()]
        return any(isinstance(owner, SiteHooks) for owner in owners)

    def _install(self) -> list[Any]:
        site, handles = self.site, []
        handles.append(site.host.register_forward_pre_hook(self._see_grid, with_kwargs=True))
        handles.append(site.block.register_forward_pre_hook(self._before_block, with_kwargs=True))
        handles.append(site.attention.register_forward_pre_hook(self._before_attention, with_kwargs=True))
        if self.recipe.scope == "block":
            handles.append(site.block.register_forward_hook(self._after_block))
        else:
            handles.append(site.attention.register_forward_hook(self._after_attention))
        return handles

    def _see_grid(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.compiler.is_compiling():
            self.before_call()
        image = args[0] if args else kwargs["hidden_states"]
        self.grid = TokenGrid(tuple(image.shape[-2:]), self.recipe.stride)

    def _before_block(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        tokens = args[0]
        self.ran = True
        plan = self.cache(tokens, self.grid)
        self.plan = None if self.recipe.policy.is_identity(self.grid, self.cache.capacity) else plan
        if self.recipe.scope != "block" or self.plan is None:
            return args, kwargs
        self.tokens = tokens
        return (merge(tokens, self.plan), *args[1:]), kwargs

    def _before_attention(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        if self.plan is None:
            return args, kwargs
        tokens = args[0]
        kwargs = kwargs | {"attention_mask": self._bias(tokens, self.plan, kwargs.get("attention_mask"))}
        if self.recipe.scope == "keys":
            self._refuse_fused(module)
            return args, kwargs | {"encoder_hidden_states": merge(tokens, self.plan)}
        if self.recipe.scope == "attention":
            args = (merge(tokens, self.plan), *args[1:])
        return args, kwargs

    def _after_attention(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        plan, self.plan = self.plan, None
        return output if plan is None or self.recipe.scope == "keys" else unmerge(output, plan)

    def _after_block(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        plan, tokens = self.plan, self.tokens
        self.plan = self.tokens = None
        if plan is None or tokens is None:
            return output
        return tokens + unmerge(output - args[0], plan)

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
