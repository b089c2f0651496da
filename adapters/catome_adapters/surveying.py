"""Finding the sites of a model or pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from catome_adapters.sites import MergeSite, SkippedSite
from catome_adapters.transformers import survey_transformer
from catome_adapters.unets import survey_unet
from catome_adapters.vits import is_vit, survey_vit

NETWORKS = ("unet", "transformer", "transformer_2")
"""What diffusers' pipelines call their denoisers."""


def find_sites(model: Any) -> list[MergeSite]:
    """Find every block of image or video tokens in a diffusers network, a timm ViT, or the pipeline around it.

    Args:
        model: A pipeline (its `unet`, `transformer` and `transformer_2` are searched) or a model, compiled or not.

    Returns:
        The sites in the order of the model's modules; empty if there are none.

    Examples:
        >>> from catome_bench.pipeline import build_unet
        >>> for site in find_sites(build_unet())[:2]:
        ...     print(site.name, site.level)
        down_blocks.0.attentions.0.transformer_blocks.0 1
        down_blocks.1.attentions.0.transformer_blocks.0 2
    """
    return [place for place in survey(model) if isinstance(place, MergeSite)]


def survey(model_or_pipeline: Any) -> list[MergeSite | SkippedSite]:
    """Every transformer block: a site, or the reason why it is none. Names of several networks begin with theirs."""
    networks = denoisers(model_or_pipeline)
    if len(networks) == 1:
        return _survey(*networks.values())
    return [
        replace(place, name=f"{name}.{place.name}") for name, network in networks.items() for place in _survey(network)
    ]


def denoisers(model_or_pipeline: Any) -> Mapping[str, nn.Module]:
    """The networks of a pipeline or wrapper by name, or the one that was given; without torch.compile's wrapper.

    Raises:
        TypeError: If there is none.
    """
    model_or_pipeline = _unwrapped(model_or_pipeline)
    parts = {name: _unwrapped(getattr(model_or_pipeline, name, None)) for name in NETWORKS}
    networks = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    if not networks and isinstance(model_or_pipeline, nn.Module):
        return {"": model_or_pipeline}
    if not networks:
        raise TypeError(
            f"{type(model_or_pipeline).__name__} is neither a torch.nn.Module nor a pipeline with one of {NETWORKS}; "
            "pass the network that holds the transformer blocks"
        )
    return networks


def _unwrapped(model: Any) -> Any:
    return getattr(model, "_orig_mod", model)


def _survey(network: nn.Module) -> list[MergeSite | SkippedSite]:
    if is_vit(network):
        return survey_vit(network)
    return survey_unet(network) if hasattr(network, "down_blocks") else survey_transformer(network)
