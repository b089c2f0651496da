"""Finding the sites of a model or pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from catome_adapters.architectures.encoder import find_in_encoder, is_encoder
from catome_adapters.architectures.transformer import find_in_transformer
from catome_adapters.architectures.unet import find_in_unet, is_unet
from catome_adapters.architectures.vit import find_in_vit, is_vit
from catome_adapters.sites.site import MergeSite, SkippedSite

NETWORKS = ("unet", "transformer", "transformer_2")
"""What diffusers' pipelines call their denoisers."""

WRAPPED = (
    "it, its self-attention or its host is compiled as torch.compile(module), which hides the arguments of its calls: "
    "call module.compile(), or compile_blocks(model), instead"
)

Candidates = list[MergeSite | SkippedSite]

ARCHITECTURES: list[tuple[Callable[[nn.Module], bool], Callable[[Any], Candidates]]] = [
    (is_vit, find_in_vit),
    (is_unet, find_in_unet),
    (is_encoder, find_in_encoder),
    (lambda network: True, find_in_transformer),
]
"""How a network is recognized, and how its blocks are found; the first pair that fits counts."""


def find_sites(model: Any) -> list[MergeSite]:
    """Find every block of image or video tokens in a diffusers network, a ViT of timm or transformers, or a pipeline.

    Args:
        model: A pipeline (its `unet`, `transformer` and `transformer_2` are searched) or a model, compiled or not.

    Returns:
        The sites in the order of the model's modules; empty if there are none.

    Examples:
        >>> from diffusers import DiTTransformer2DModel
        >>> network = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, num_layers=2, sample_size=16)
        >>> for site in find_sites(network):
        ...     print(site.name, site.shape)
        transformer_blocks.0 (8, 8)
        transformer_blocks.1 (8, 8)
    """
    return [candidate for candidate in find_candidates(model) if isinstance(candidate, MergeSite)]


def find_candidates(model_or_pipeline: Any) -> Candidates:
    """Every transformer block: a site, or why it is skipped.

    With several networks, names are prefixed with the network's name.
    """
    networks = denoisers(model_or_pipeline)
    if len(networks) == 1:
        return _find(*networks.values())
    return [replace(one, name=f"{name}.{one.name}") for name, network in networks.items() for one in _find(network)]


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


def _find(network: nn.Module) -> Candidates:
    candidates = next(find for recognizes, find in ARCHITECTURES if recognizes(network))(network)
    return [SkippedSite(one.name, WRAPPED) if _is_wrapped(one, network) else one for one in candidates]


def _is_wrapped(candidate: MergeSite | SkippedSite, network: nn.Module) -> bool:
    around = (candidate.host, *candidate.attentions, *candidate.readers) if isinstance(candidate, MergeSite) else ()
    return any(_unwrapped(part) is not part for part in (network.get_submodule(candidate.name), *around))
