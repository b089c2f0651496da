"""Attaching a recipe to a model: which sites, or why none."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from catome_adapters.attending import AttentionHooks
from catome_adapters.parallel import for_ranks
from catome_adapters.prediction import LevelGain, attached_levels, predict_levels, winning_levels
from catome_adapters.recipe import RECIPES, MergeRecipe
from catome_adapters.session import MergeSession
from catome_adapters.sites import MergeSite, SkippedSite
from catome_adapters.stacking import refuse_beside, whole_sequence
from catome_adapters.surveying import denoisers, survey
from catome_core.ladder import LADDER


def attach(
    model_or_pipeline: Any, recipe: MergeRecipe = RECIPES["default"], *, sites: Sequence[MergeSite] | None = None
) -> MergeSession:
    """Merge tokens in a diffusers pipeline or network from now on, until the session is detached.

    Nothing is subclassed and no forward is replaced: the model gets plain forward hooks, the scheduler's
    `set_timesteps` and `step` are listened to. The state_dict stays as it is. What was compiled
    before is compiled anew, since compiled code does not look for new hooks.

    With `levels="auto"` the attach is where merging is predicted to gain at the model's default size, and a call at a
    size where a site would lose leaves that site's tokens whole. Where nothing gains, a warning says so.

    Args:
        model_or_pipeline: A diffusers pipeline with a UNet, or the network itself, compiled or not.
        recipe: What to merge, where and when.
        sites: Exactly these sites instead of those that `recipe.levels` chooses; with a ControlNet's encoder, say,
            `sites=find_sites(pipe.unet) + find_sites(pipe.controlnet)`.

    Returns:
        The session.

    Raises:
        TypeError: If there is no network, or the recipe is none.
        ValueError: If no site is found, or none at the chosen levels; or if the recipe waits for later steps, and the
            model, such as a timm ViT, sees every input once; or if something else at work on the model (a cache over
            steps, an attention backend, context parallelism) cannot live with the recipe.
        RuntimeError: If a site has a session already.

    Examples:
        >>> from catome_bench.pipeline import build_unet
        >>> unet = build_unet()
        >>> with attach(unet, RECIPES["paper"]) as session:
        ...     print(len(session.sites))
        3
    """
    if not isinstance(recipe, MergeRecipe):
        raise TypeError(f"recipe is {recipe!r}; expected a MergeRecipe, such as one of RECIPES: {sorted(RECIPES)}")
    places = [_shared(place) for place in (survey(model_or_pipeline) if sites is None else sites)]
    skipped = [place for place in places if isinstance(place, SkippedSite)]
    found = [place for place in places if isinstance(place, MergeSite)]
    if not found:
        raise ValueError(_nothing_found(model_or_pipeline, skipped))
    auto = sites is None and recipe.levels == "auto" and not recipe.progressive
    gains = predict_levels(found, recipe) if auto else {}
    chosen = _distinct(found) if sites is not None else _at_levels(found, recipe.levels, gains)
    _refuse_attached(chosen)
    _refuse_scope(chosen, recipe)
    _refuse_waiting(chosen, recipe)
    _refuse_progressive(chosen, recipe)
    refuse_beside(chosen, recipe)
    if gains and not winning_levels(gains):
        _warn_of_loss(chosen, gains)
    _prepare_compiler(recipe)
    skipped += [_left_out(site, recipe, gains) for site in found if site not in chosen]
    return MergeSession(model_or_pipeline, recipe, chosen, skipped)


def _shared(place: MergeSite | SkippedSite) -> MergeSite | SkippedSite:
    """The place as one rank sees it, where several share a sequence."""
    if not isinstance(place, MergeSite):
        return place
    reason = whole_sequence(place)
    return SkippedSite(place.name, reason, place) if reason else for_ranks(place)


def _left_out(site: MergeSite, recipe: MergeRecipe, gains: Mapping[int, LevelGain]) -> SkippedSite:
    reason = f"level {site.level} is not chosen (levels={recipe.levels!r})"
    if site.level in gains:
        level = gains[site.level]
        too_little = ", less than a quarter of the best level's gain" if level.gain > 0 else ""
        reason += f": {level} a call of the network{too_little}"
    return SkippedSite(site.name, reason, site)


def _warn_of_loss(sites: Sequence[MergeSite], gains: Mapping[int, LevelGain]) -> None:
    level = sites[0].level
    tokens = " x ".join(map(str, sites[0].shape or ()))
    warnings.warn(
        f"merging is predicted to lose time at the model's default size: level {level}, {len(sites)} sites of {tokens} "
        f"tokens, {gains[level]} a call of the network. It stays attached, and merges in calls whose size gains. "
        'Draw larger pictures, merge more (scope="block"), recompute less often, or merge anyway: levels="top"',
        stacklevel=3,
    )


def _nothing_found(model: Any, skipped: Sequence[SkippedSite]) -> str:
    networks = " and ".join(type(network).__name__ for network in denoisers(model).values())
    reasons = "".join(f"\n  {place.name}: {place.reason}" for place in skipped)
    return (
        f"no place to merge tokens in {networks}: looked for `transformer_blocks` with a self-attention `attn1` inside "
        "down_blocks, mid_block and up_blocks (UNets), lists of blocks that diffusers' TransformerBlockRegistry knows "
        f"(transformers), and `blocks` after a `patch_embed` (timm){reasons}\n"
        "pass sites=[MergeSite(...)] to say where its tokens are"
    )


def _at_levels(
    sites: Sequence[MergeSite], levels: str | tuple[int, ...], gains: Mapping[int, LevelGain]
) -> list[MergeSite]:
    known = sorted({site.level for site in sites})
    named = {"auto": attached_levels(sites, gains), "top": known[:1], "all": known}
    wanted = named[levels] if isinstance(levels, str) else levels
    if not wanted or set(wanted) - set(known):
        raise ValueError(f"levels is {levels!r}; this model has self-attention at levels {known} (factors)")
    return [site for site in sites if site.level in wanted]


def _prepare_compiler(recipe: MergeRecipe) -> None:
    """Dynamo does not guard on hooks: what was compiled without them would go on without them, silently.

    And it gives up on code with more graphs than its limit: every rung takes two.
    """
    torch.compiler.reset()
    if recipe.policy.capacity is None:
        needed = 2 * (len(LADDER) + 1) + 8
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, needed)


def _distinct(sites: Sequence[MergeSite]) -> list[MergeSite]:
    """The sites of several networks, each with a name of its own.

    Raises:
        ValueError: If a block is among them twice.
    """
    blocks = [id(site.block) for site in sites]
    twice = [site.name for site in sites if blocks.count(id(site.block)) > 1]
    if twice:
        raise ValueError(f"sites has {twice[0]} more than once; pass every site once")
    seen: Counter[str] = Counter()
    named = []
    for site in sites:
        seen[site.name] += 1
        named.append(site if seen[site.name] == 1 else replace(site, name=f"{site.name} ({seen[site.name]})"))
    return named


def _refuse_attached(sites: Sequence[MergeSite]) -> None:
    taken = [site.name for site in sites if any(map(AttentionHooks.on, site.attentions))]
    if taken:
        raise RuntimeError(f"{taken[0]} and {len(taken) - 1} more have a session already; call its detach() first")


def _refuse_scope(sites: Sequence[MergeSite], recipe: MergeRecipe) -> None:
    for site in sites:
        if recipe.scope in site.layout.refused:
            raise ValueError(f"{site.name} cannot merge in scope={recipe.scope!r}: {site.layout.refused[recipe.scope]}")


def _refuse_waiting(sites: Sequence[MergeSite], recipe: MergeRecipe) -> None:
    """A model that sees every input once has no later step, and what waits for one would save nothing, silently."""
    once = [site.name for site in sites if not site.stepped]
    waits = {
        "policy.capacity is None, which adapts": recipe.policy.capacity is None,
        "metric='output' merges": recipe.metric == "output",
        "during is a part of the run, which merges": recipe.during != (0.0, 1.0),
    }
    reasons = [f"{reason} after the first step" for reason, applies in waits.items() if applies]
    if once and reasons:
        raise ValueError(
            f"{once[0]} belongs to a model that is called once for every input, without steps, and {reasons[0]}: use "
            'RECIPES["vit"], or a recipe with a fixed AdaptiveMerge(capacity=0.25, spare="fill"), metric="input" and '
            "no during"
        )


def _refuse_progressive(sites: Sequence[MergeSite], recipe: MergeRecipe) -> None:
    stepped = [site.name for site in sites if site.stepped]
    if recipe.progressive and stepped:
        raise ValueError(
            f"progressive=True merges for good, and {stepped[0]} belongs to a model that draws every token; use "
            'scope="block" with segment=4, say'
        )
    whole = [site for site in sites if not _has_halves(site)]
    if recipe.progressive and whole:
        raise ValueError(
            f"progressive=True merges between attention and feed-forward, and {whole[0].name} does not say where "
            f"{type(whole[0].block).__name__} has its feed-forward: pass sites=[MergeSite(..., "
            'layout=BlockLayout(feed_forward=("norm2", "mlp")))] with the names of its modules, or use RECIPES["vit"]'
        )


def _has_halves(site: MergeSite) -> bool:
    names, known = site.layout.feed_forward, dict(site.block.named_modules())
    return bool(names) and all(name in known for name in names)
