"""Attaching a recipe to a model: to which sites, and to which not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from catome_adapters.architectures.find import denoisers, find_candidates
from catome_adapters.compatibility import check_attachable, reason_of_ranks
from catome_adapters.hooks.scopes import SCOPES
from catome_adapters.prediction.levels import (
    LevelGain,
    choose_levels,
    predict_levels,
    winning_levels,
    with_near_field,
)
from catome_adapters.prediction.network import blocks_share, network_seconds
from catome_adapters.prediction.worth import MIN_GAIN
from catome_adapters.recipe import MergeRecipe
from catome_adapters.recipes import RECIPES
from catome_adapters.session import MergeSession
from catome_adapters.sites.ranks import for_ranks
from catome_adapters.sites.site import MergeSite, SkippedSite
from catome_core import MergeWarning, checks


def attach(
    model_or_pipeline: Any, recipe: MergeRecipe | str = "default", *, sites: Sequence[MergeSite] | None = None
) -> MergeSession:
    """Merge tokens in a diffusers pipeline or network from now on, until the session is detached.

    No forward is replaced: blocks get plain forward hooks, the calls of self-attention are enclosed by a subclass of
    the same name, and the scheduler's `set_timesteps` and `step` are observed. The state_dict stays as it is. What was
    compiled before is compiled anew, since compiled code does not look for new hooks; for that, `attach` and `detach`
    call `torch.compiler.reset()`, which concerns the whole process. While a recipe whose capacity adapts is attached,
    `torch._dynamo.config.recompile_limit` is at least what its graphs need.

    With `levels="auto"` the attach is where merging is predicted to gain at the model's default size, and a call at a
    size where a site would lose leaves that site's tokens unmerged. Where nothing gains, a warning says so.

    Args:
        model_or_pipeline: A diffusers pipeline, or the network itself, compiled or not.
        recipe: What to merge, where and when; or the name of one of `RECIPES`.
        sites: Exactly these sites instead of those that `recipe.levels` chooses; with a ControlNet's encoder, say,
            `sites=find_sites(pipe.unet) + find_sites(pipe.controlnet)`.

    Returns:
        The session.

    Raises:
        TypeError: If there is no network, or the recipe is neither a `MergeRecipe` nor a name.
        KeyError: If no recipe has this name.
        ValueError: If no site is found, or none at the chosen levels; or if the recipe waits for later steps, and the
            model, such as a timm ViT, is called once per input; or if something else at work on the model (a cache over
            steps, an attention backend, context parallelism) is incompatible with the recipe.
        RuntimeError: If a site has a session already.

    Examples:
        >>> from diffusers import DiTTransformer2DModel
        >>> network = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, num_layers=3, sample_size=16)
        >>> with attach(network, "paper") as session:
        ...     print(len(session.sites))
        3
    """
    recipe = RECIPES[recipe] if isinstance(recipe, str) else recipe
    checks.instance(
        "recipe", recipe, MergeRecipe, f"a MergeRecipe or a name, such as one of RECIPES: {sorted(RECIPES)}"
    )
    candidates = [_for_this_rank(one) for one in (find_candidates(model_or_pipeline) if sites is None else sites)]
    skipped = [one for one in candidates if isinstance(one, SkippedSite)]
    found = [one for one in candidates if isinstance(one, MergeSite)]
    if not found:
        raise ValueError(_nothing_found(model_or_pipeline, skipped))
    recipe = with_near_field(recipe, found)
    auto = sites is None and recipe.levels == "auto" and SCOPES[recipe.scope].predictable
    gains = predict_levels(found, recipe) if auto else {}
    network = network_seconds(denoisers(model_or_pipeline).values(), found, recipe)
    minimum = MIN_GAIN * network
    if sites is None:
        levels = choose_levels(found, recipe.levels, gains, minimum)
        chosen = [site for site in found if site.level in levels]
    else:
        chosen = _distinct(found)
    check_attachable(chosen, recipe)
    if gains and not winning_levels(gains, minimum):
        _warn_of_loss(chosen, gains, network)
    # Dynamo does not guard on hooks: what was compiled without them would go on without them, unnoticed.
    torch.compiler.reset()
    skipped += [_left_out(site, recipe, gains) for site in found if site not in chosen]
    return MergeSession(model_or_pipeline, recipe, chosen, skipped, blocks_share(chosen, network, recipe))


def _for_this_rank(candidate: MergeSite | SkippedSite) -> MergeSite | SkippedSite:
    """The site as one rank has it, where several share a sequence."""
    if not isinstance(candidate, MergeSite):
        return candidate
    reason = reason_of_ranks(candidate)
    return SkippedSite(candidate.name, reason, candidate) if reason else for_ranks(candidate)


def _left_out(site: MergeSite, recipe: MergeRecipe, gains: Mapping[int, LevelGain]) -> SkippedSite:
    reason = f"level {site.level} is not chosen (levels={recipe.levels!r})"
    if site.level in gains:
        level = gains[site.level]
        too_little = ", less than a quarter of the best level's gain" if level.gain > 0 else ""
        reason += f": {level} per call of the network{too_little}"
    return SkippedSite(site.name, reason, site)


def _warn_of_loss(sites: Sequence[MergeSite], gains: Mapping[int, LevelGain], network: float) -> None:
    level = sites[0].level
    tokens = " x ".join(map(str, sites[0].shape or ()))
    verdict = f"gain less than {MIN_GAIN:.0%} of the {network * 1e3:.2f} ms that a call of the network takes"
    MergeWarning.warn(
        f"merging is predicted to {verdict if gains[level].gain > 0 else 'lose time'} at the model's default size: "
        f"level {level}, {len(sites)} sites of {tokens} tokens, {gains[level]}. It stays attached, and merges in calls "
        'whose size gains. Draw larger pictures, merge more (scope="block"), recompute less often, or merge anyway: '
        'levels="all"'
    )


def _nothing_found(model: Any, skipped: Sequence[SkippedSite]) -> str:
    networks = " and ".join(type(network).__name__ for network in denoisers(model).values())
    reasons = "".join(f"\n  {site.name}: {site.reason}" for site in skipped)
    return (
        f"no tokens to merge in {networks}: looked for `transformer_blocks` with a self-attention `attn1` inside "
        "down_blocks, mid_block and up_blocks (UNets), lists of blocks that are in diffusers' TransformerBlockRegistry "
        "(transformers), `blocks` after a `patch_embed` (timm), and `layers` after `embeddings` of patches (encoders)"
        f"{reasons}\n"
        "pass sites=[MergeSite(...)] to say where its tokens are"
    )


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
    named: list[MergeSite] = []
    for site in sites:
        seen[site.name] += 1
        named.append(site if seen[site.name] == 1 else replace(site, name=f"{site.name} ({seen[site.name]})"))
    return named
