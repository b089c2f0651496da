"""Attaching a recipe to a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from torch import nn

from catome_adapters.architectures.find import denoisers, find_candidates
from catome_adapters.prediction.choose import choose_calibrated, choose_gaining
from catome_adapters.prediction.network import network_seconds, part_of_network
from catome_adapters.recipes.calibrated import CalibratedRecipe, Recipe
from catome_adapters.recipes.decide import decide
from catome_adapters.recipes.named import RECIPES
from catome_adapters.recipes.recipe import MergeRecipe
from catome_adapters.session import MergeSession
from catome_adapters.sites.ranks import for_ranks, reason_of_ranks
from catome_adapters.sites.site import MergeSite, SkippedSite
from catome_core import checks


def attach(
    model_or_pipeline: Any,
    recipe: Recipe | str = "default",
    *,
    sites: Sequence[MergeSite] | None = None,
) -> MergeSession:
    """Merge tokens in a diffusers pipeline or network from now on, until the session is detached.

    No forward is replaced: blocks get plain forward hooks, the calls of self-attention are enclosed by a subclass of
    the same name, and the scheduler's `set_timesteps` and `step` are observed. The state_dict stays as it is. What was
    compiled before is compiled anew, since compiled code does not look for new hooks; for that, `attach` and `detach`
    call `torch.compiler.reset()`, which concerns the whole process. While a recipe whose capacity adapts is attached,
    `torch._dynamo.config.recompile_limit` is at least what its graphs need.

    With `levels="auto"` the attach is where merging is predicted to gain at the model's default size, and a call at a
    size where a site would lose leaves that site's tokens unmerged. Where nothing gains, a warning says so. The
    prediction is for the dtype of the weights and the device they are on: attach once the model is where it will run.

    Args:
        model_or_pipeline: A diffusers pipeline, or the network itself, compiled or not.
        recipe: What to merge, where and when; the name of one of `RECIPES`; or what `catome calibrate` found.
        sites: Exactly these sites instead of those that `recipe.levels` chooses; with a ControlNet's encoder, say,
            `sites=find_sites(pipe.unet) + find_sites(pipe.controlnet)`.

    Returns:
        The session.

    Raises:
        TypeError: If there is no network, or `recipe` is not a recipe.
        KeyError: If no recipe has this name.
        ValueError: If no site is found, or none at the chosen levels; if the recipe waits for later steps, and the
            model, such as a timm ViT, is called once per input; if it was calibrated on another model; or if something
            else at work on the model (a cache over steps, an attention backend, context parallelism) is incompatible
            with it.
        RuntimeError: If a site has a session already.

    Examples:
        >>> from diffusers import DiTTransformer2DModel
        >>> network = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, num_layers=3, sample_size=16)
        >>> with attach(network, "paper") as session:
        ...     print(len(session.sites))
        3
    """
    recipe = RECIPES[recipe] if isinstance(recipe, str) else recipe
    kinds = (MergeRecipe, CalibratedRecipe)
    checks.instance("recipe", recipe, kinds, f"a MergeRecipe or a name, such as one of RECIPES: {sorted(RECIPES)}")
    if sites is not None:
        _check_sites(sites)
    candidates = [_for_this_rank(one) for one in (find_candidates(model_or_pipeline) if sites is None else sites)]
    skipped = [one for one in candidates if isinstance(one, SkippedSite)]
    found = [one for one in candidates if isinstance(one, MergeSite)]
    if not found:
        raise ValueError(_nothing_found(model_or_pipeline, skipped))
    if sites is None:
        _refuse_shared(found)
    networks = denoisers(model_or_pipeline).values()
    _refuse_split(networks)
    if isinstance(recipe, CalibratedRecipe):
        chosen = choose_calibrated(recipe, found, sites)
        layout = next(iter(chosen.sites))
    else:
        layout = recipe = decide(recipe, found)
        chosen = choose_gaining(recipe, network_seconds(networks, found, layout), found, sites)
    part = part_of_network(networks, found, chain.from_iterable(chosen.sites.values()), layout)
    return MergeSession(model_or_pipeline, recipe, chosen.sites, [*skipped, *chosen.left_out], part)


def _check_sites(sites: Sequence[MergeSite]) -> None:
    if not sites:
        raise ValueError("sites is empty; expected MergeSites, or None for those that the recipe's levels choose")
    for site in sites:
        checks.instance("sites", site, MergeSite, "MergeSites, such as those of find_sites(model)")


def _for_this_rank(candidate: MergeSite | SkippedSite) -> MergeSite | SkippedSite:
    """The site as one rank has it, where several share a sequence."""
    if not isinstance(candidate, MergeSite):
        return candidate
    reason = reason_of_ranks(candidate)
    return SkippedSite(candidate.name, reason, candidate) if reason else for_ranks(candidate)


def _refuse_split(networks: Iterable[nn.Module]) -> None:
    """Raise ValueError: tokens are moved to a block's device only after the plan was made where they were."""
    for network in networks:
        devices: dict[str, Any] = getattr(network, "hf_device_map", {})
        several = sorted({*map(str, devices.values())} - {"cpu", "disk"})
        if len(several) > 1:
            raise ValueError(
                f"device_map splits {type(network).__name__} over {', '.join(several)}, and a plan is for one device: "
                "load it on one, offloaded with enable_model_cpu_offload() or quantized if it does not fit"
            )


def _refuse_shared(sites: Sequence[MergeSite]) -> None:
    """Raise ValueError: two blocks are one module, as tied weights may be, whose calls cannot be told apart."""
    first: dict[int, str] = {}
    for site in sites:
        name = first.setdefault(id(site.attention), site.name)
        if name != site.name:
            raise ValueError(
                f"{name} and {site.name} have the same self-attention, {type(site.attention).__name__}, whose calls "
                "cannot be told apart: pass sites=[...] without either of them"
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
