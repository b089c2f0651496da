"""Everything that is refused before a run: sites that a recipe does not fit, and other libraries' patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from catome_adapters.hooks.attention import is_enclosed
from catome_adapters.hooks.backend import Backend, backend_of
from catome_adapters.hooks.scopes import SCOPES
from catome_adapters.hooks.substitutes import find_substitutes
from catome_adapters.recipes.recipe import MergeRecipe
from catome_adapters.sites.ranks import RankGrid, count_ranks, reason_of_ranks
from catome_adapters.sites.site import MergeSite
from catome_core import Lattice, MergeWarning

FIXED = 'AdaptiveMerge(capacity=0.25, spare="fill")'
NOTHING_TO_ADD = "use AdaptiveMerge(spare='fill') with proportional=False and scope='attention' or 'block'"
"""A recipe for which attention needs neither a mask nor other keys."""


def check_attachable(sites: Sequence[MergeSite], recipe: MergeRecipe) -> None:
    """Everything that has to hold when a session is attached.

    Raises:
        RuntimeError: If a site has a session already.
        ValueError: If the sites do not fit the recipe, or something else at work on them is incompatible with it.
    """
    taken = [site.name for site in sites if any(map(is_enclosed, site.attentions))]
    if taken:
        raise RuntimeError(f"{taken[0]} has a session already; call its detach() first")
    _check(sites, recipe, (_scope_fits, _needs_no_steps))
    check_compatible(sites, recipe)
    _warn_of_substitute(sites, recipe)


def check_compatible(sites: Sequence[MergeSite], recipe: MergeRecipe) -> None:
    """Everything that may change while a session is attached, before each run.

    Raises:
        ValueError: With the site, the reason and the remedy, if something cannot work.
    """
    checks = (_no_cache_of_merged_tokens, _no_cache_between_blocks, _attention_can_change, _attends_once, _ranks_agree)
    _check(sites, recipe, checks)


def check_repeatable(sites: Sequence[MergeSite], recipe: MergeRecipe) -> None:
    """Everything that has to hold from the second step of a run on.

    Raises:
        ValueError: With the site, the reason and the remedy, if something cannot work.
    """
    if torch.is_grad_enabled():
        _check(sites, recipe, (_repeats_in_eager_code,))


Check = Callable[[MergeSite, MergeRecipe], str | None]


def _check(sites: Sequence[MergeSite], recipe: MergeRecipe, checks: Sequence[Check]) -> None:
    for site in sites:
        for check in checks:
            reason = check(site, recipe)
            if reason:
                raise ValueError(f"{site.name}: {reason}")


def _scope_fits(site: MergeSite, recipe: MergeRecipe) -> str | None:
    """The site's layout and the scope itself allow it."""
    reason = site.layout.refused.get(recipe.scope) or SCOPES[recipe.scope].site_error(site)
    return f"cannot merge in scope={recipe.scope!r}: {reason}" if reason else None


def _needs_no_steps(site: MergeSite, recipe: MergeRecipe) -> str | None:
    """A model that is called once per input has no later steps, and what happens only in them would save nothing."""
    reason = waits_for_steps(recipe)
    if site.denoises or reason is None:
        return None
    fixed = "Lattice(moving=False)" if isinstance(recipe.policy, Lattice) else FIXED
    return (
        f"it belongs to a model that is called once for every input, without steps, and {reason}: use "
        f'RECIPES["vit"], or a recipe with a fixed {fixed}, metric="input", and the defaults of `during` and `later`'
    )


def waits_for_steps(recipe: MergeRecipe) -> str | None:
    """What the recipe does only after the first step of a run, if anything; its schedule aside."""
    later = {
        "policy.capacity is None, which adapts": recipe.policy.adapts,
        "policy.moving is True, which moves the keys": isinstance(recipe.policy, Lattice) and recipe.policy.moving,
        "metric='output' merges": recipe.metric == "output",
        "during is a part of the run, which merges": recipe.during != (0.0, 1.0),
        "later has other cells, which merge": bool(recipe.later),
    }
    return next((f"{reason} after the first step" for reason, applies in later.items() if applies), None)


def _no_cache_of_merged_tokens(site: MergeSite, recipe: MergeRecipe) -> str | None:
    """A cache over steps returns tokens that another plan has merged."""
    for module in SCOPES[recipe.scope].merged_modules(site):
        for hook in find_substitutes(module):
            return (
                f"diffusers' {type(hook).__name__} may return for {type(module).__name__} what it kept from an "
                f"earlier step, with scope={recipe.scope!r} merged by another plan; {_cache_remedy(site, module)}"
            )
    return None


def _no_cache_between_blocks(site: MergeSite, recipe: MergeRecipe) -> str | None:
    """cache-dit subtracts what one block returns from what another does."""
    if recipe.segment == 1 or not getattr(site.caller, "_is_cached", False):
        return None
    return (
        f"cache-dit compares tokens between blocks, where segment={recipe.segment} has them merged; "
        "call cache_dit.disable_cache(), or use segment=1"
    )


def _repeats_in_eager_code(site: MergeSite, recipe: MergeRecipe) -> str | None:
    """What gradient checkpointing repeats in compiled code has the plan of the last step instead of its own."""
    if not site.checkpoints_gradients or getattr(site.block, "_compiled_call_impl", None) is None:
        return None
    return (
        "its block is compiled, and gradient checkpointing would repeat it with the plan of a later step; call "
        "disable_gradient_checkpointing(), checkpoint the network as a whole, or leave its blocks uncompiled"
    )


def _cache_remedy(site: MergeSite, module: nn.Module) -> str:
    if module is site.block:
        return "call disable_cache() on the network, or use scope='attention' or 'keys'"
    return "call disable_cache() on the network, or use scope='keys', or a cache of whole blocks (FirstBlockCache)"


def _attention_can_change(site: MergeSite, recipe: MergeRecipe) -> str | None:
    """Some attention backends do not call `scaled_dot_product_attention`, and have no substitute that does."""
    backend = _foreign_backend(site, recipe)
    if backend is None or backend.has_substitute:
        return None
    if backend.counts_tokens:
        return f"the attention backend {backend.name!r} masks tokens by their index; call {backend.remedy}"
    reason = "makes calls that cannot be intercepted"
    return f"the attention backend {backend.name!r} {reason}; call {backend.remedy}, or {NOTHING_TO_ADD}"


def _foreign_backend(site: MergeSite, recipe: MergeRecipe) -> Backend | None:
    """The backend whose calls would have to be intercepted and cannot be."""
    if site.layout.takes_keys:
        return None
    backends = (backend_of(attention) for attention in site.attentions)
    foreign = (one for one in backends if one is not None and not one.calls_torch)
    return next((one for one in foreign if one.counts_tokens or _must_intercept(recipe)), None)


def _warn_of_substitute(sites: Sequence[MergeSite], recipe: MergeRecipe) -> None:
    foreign = {backend.name for site in sites if (backend := _foreign_backend(site, recipe)) is not None}
    if foreign:
        MergeWarning.warn(
            f"the attention backend {min(foreign)!r} cannot be made aware of merged tokens, so attention over them "
            f"runs on torch's flash attention instead; to keep the backend, {NOTHING_TO_ADD}"
        )


def _needs_bias(recipe: MergeRecipe) -> bool:
    return recipe.proportional or recipe.policy.pads


def _must_intercept(recipe: MergeRecipe) -> bool:
    return _needs_bias(recipe) or not SCOPES[recipe.scope].merges_queries


def _attends_once(site: MergeSite, recipe: MergeRecipe) -> str | None:
    """Stable Diffusion 3's IP-Adapter attends to the image's keys a second time, next to its own."""
    name = type(getattr(site.attention, "processor", None)).__name__
    if not name.startswith("SD3IPAdapter") or not SCOPES[recipe.scope].merges_queries or not _needs_bias(recipe):
        return None
    return f"{name} attends to merged keys again, among its own, where no mask fits; {NOTHING_TO_ADD}, or scope='keys'"


def _ranks_agree(site: MergeSite, recipe: MergeRecipe) -> str | None:
    """Ranks that share a sequence gather equally many keys from each other, without their plans."""
    count = count_ranks(site.host)
    if count == 1:
        return None
    if not isinstance(site.grid_of, RankGrid):
        return f"{count} ranks have begun to share the sequence; call enable_parallelism() before attach()"
    if recipe.policy.adapts:
        return "with capacity=None ranks would keep different numbers of tokens; give AdaptiveMerge a capacity"
    if _must_intercept(recipe):
        return f"attention gathers keys of {count} ranks, without their plans; {NOTHING_TO_ADD}"
    return reason_of_ranks(site)
