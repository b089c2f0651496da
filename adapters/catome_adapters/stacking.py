"""What else is at work on the same model, and what of it merging cannot live with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from catome_adapters.parallel import RankGrid, ranks, splits_itself
from catome_adapters.recipe import MergeRecipe
from catome_adapters.sites import MergeSite

PASSING = (
    "TextKVCacheBlockHook",
    "TransformerBlockSkipHook",
    "FeedForwardSkipHook",
    "AttentionProcessorSkipHook",
    "PeftInputAutocastDisableHook",
)
"""Hooks of diffusers that run in a module's place and keep no image tokens for later."""

UNTOLD = "use AdaptiveMerge(spare='fill') with proportional=False and scope='attention' or 'block'"


def refuse_beside(sites: Sequence[MergeSite], recipe: MergeRecipe) -> None:
    """Look at everything that stands beside the session, before a run.

    Raises:
        ValueError: With the site, the reason and the remedy, if something cannot work.
    """
    for site in sites:
        for check in CHECKS:
            reason = check(site, recipe)
            if reason:
                raise ValueError(f"{site.name}: {reason}")


def whole_sequence(site: MergeSite) -> str | None:
    """Why a site is left out under context parallelism."""
    if not splits_itself(site):
        return None
    return "context parallelism splits the sequence inside this block, so it is called with tokens of all ranks"


def _stale(site: MergeSite, recipe: MergeRecipe) -> str | None:
    """A cache over steps gives tokens back that another plan has merged."""
    for module in _merged_modules(site, recipe):
        for hook in _substitutes(module):
            return (
                f"diffusers' {type(hook).__name__} may answer for {type(module).__name__} with what it kept of an "
                f"earlier step, with scope={recipe.scope!r} merged by another plan; {_cache_remedy(site, module)}"
            )
    return None


def _cache_remedy(site: MergeSite, module: nn.Module) -> str:
    if module is site.block:
        return "call disable_cache() on the network, or use scope='attention' or 'keys'"
    return "call disable_cache() on the network, or use a cache of whole blocks (FirstBlockCache) and scope='attention'"


def _merged_modules(site: MergeSite, recipe: MergeRecipe) -> Iterator[nn.Module]:
    """Modules that see merged tokens, or that must not be skipped in silence."""
    parts: Iterable[nn.Module] = (site.block,) if recipe.scope == "block" else site.attentions
    modules = (module for part in parts for module in part.modules())
    if recipe.scope == "keys" and site.layout.keys_apart:
        # From outside, such a self-attention looks as if nothing were merged.
        return (module for module in modules if module not in site.attentions)
    return modules


def _substitutes(module: nn.Module) -> list[Any]:
    registry = vars(module).get("_diffusers_hook")
    hooks = getattr(registry, "hooks", {}).values()
    return [hook for hook in hooks if hasattr(hook, "new_forward") and type(hook).__name__ not in PASSING]


def _untellable(site: MergeSite, recipe: MergeRecipe) -> str | None:
    """Kernels that are not met at `scaled_dot_product_attention`, or take no mask."""
    if site.layout.keys_apart:
        return None
    for attention in site.attentions:
        backend = _backend(attention)
        if _is_told(recipe) and not _passes(backend):
            return f"the attention backend {backend!r} cannot be told what merged; {_backend_remedy()}"
        if _is_biased(recipe) and backend == "_native_flash":
            return f"the attention backend {backend!r} takes no mask; {_backend_remedy()}"
    return None


def _backend_remedy() -> str:
    return f"call set_attention_backend('native') on the network, or {UNTOLD}"


def _passes(backend: str | None) -> bool:
    return backend is None or (backend.strip("_").startswith("native") and not backend.endswith(("_npu", "_xla")))


def _backend(attention: nn.Module) -> str | None:
    """The name of diffusers' backend for this attention; None if it has no say in it."""
    processor: Any = getattr(attention, "processor", None)
    if not hasattr(processor, "_attention_backend"):
        return None
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    backend = processor._attention_backend or _AttentionBackendRegistry.get_active_backend()[0]
    return getattr(backend, "value", backend)


def _is_biased(recipe: MergeRecipe) -> bool:
    return recipe.proportional or recipe.policy.spare == "pad"


def _is_told(recipe: MergeRecipe) -> bool:
    return _is_biased(recipe) or recipe.scope == "keys"


def _attends_again(site: MergeSite, recipe: MergeRecipe) -> str | None:
    """Stable Diffusion 3's IP-Adapter attends to the image's keys a second time, next to its own."""
    name = type(getattr(site.attention, "processor", None)).__name__
    if not name.startswith("SD3IPAdapter") or recipe.scope == "keys" or not _is_biased(recipe):
        return None
    return f"{name} attends to merged keys again, among its own, and cannot be told; {UNTOLD}, or scope='keys'"


def _unequal(site: MergeSite, recipe: MergeRecipe) -> str | None:
    """Ranks that share a sequence gather keys of equal number, and know nothing of each other's plans."""
    count = ranks(site.host)
    if count == 1:
        return None
    if not isinstance(site.measure, RankGrid):
        return f"{count} ranks have begun to share the sequence; call enable_parallelism() before attach()"
    if recipe.policy.capacity is None:
        return "with capacity=None ranks would keep different numbers of tokens; give AdaptiveMerge a capacity"
    if _is_told(recipe):
        return f"attention gathers keys of {count} ranks, and each knows what it merged itself; {UNTOLD}"
    return whole_sequence(site)


Check = Callable[[MergeSite, MergeRecipe], str | None]
CHECKS: tuple[Check, ...] = (_stale, _untellable, _attends_again, _unequal)
