"""The time of a whole network, of which its transformer blocks are a part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import Any

from torch import nn

from catome_adapters.architectures.unet import is_unet, level_at
from catome_adapters.prediction.rates import rates_of
from catome_adapters.prediction.seconds import TYPICAL_BATCH, site_seconds, typical_grid
from catome_adapters.recipes.recipe import MergeRecipe
from catome_adapters.sites.site import MergeSite
from catome_adapters.sites.weights import count_parts, count_weights


def network_seconds(
    networks: Iterable[nn.Module], sites: Sequence[MergeSite], recipe: MergeRecipe, device_type: str = ""
) -> float:
    """Seconds of one call of these networks at their default size, without merging, from the arithmetic alone.

    Args:
        networks: The networks.
        sites: All of their transformer blocks, each with its default size; a block without one counts as nothing.
        recipe: Gives the layout of the tokens.
        device_type: By default the networks' own.
    """
    blocks = blocks_seconds(sites, recipe, device_type)
    sizes = [prod(site.shape) * site.level**2 for site in sites if site.shape]
    tokens = max(sizes, default=0)
    return blocks + sum(_other_seconds(network, tokens, device_type) for network in networks)


def blocks_share(sites: Iterable[MergeSite], network: float, recipe: MergeRecipe, device_type: str = "") -> float:
    """Share of the networks' seconds that these blocks take; 1 where the models have no default size."""
    blocks = blocks_seconds(sites, recipe, device_type)
    return blocks / network if blocks else 1.0


def blocks_seconds(sites: Iterable[MergeSite], recipe: MergeRecipe, device_type: str = "") -> float:
    """Seconds of one call of these transformer blocks at their default size, without merging."""
    grids = [(site, typical_grid(site, recipe)) for site in sites]
    return sum(
        site_seconds(count_weights(site), grid, TYPICAL_BATCH, recipe, rates_of(site.attention, device_type), 0.0).block
        for site, grid in grids
        if grid is not None
    )


def _other_seconds(network: nn.Module, tokens: int, device_type: str) -> float:
    """What a UNet computes outside of its transformer blocks, mostly convolutions; elsewhere that is next to nothing.

    Examples:
        >>> network = nn.Module()
        >>> network.down_blocks = nn.ModuleList([nn.Conv2d(2, 2, 3)])
        >>> _other_seconds(network, 100, "cpu") > 0
        True
    """
    if not is_unet(network):
        return 0.0
    rates = rates_of(network, device_type)
    flops = sum(2 * _size(layer) * tokens / level**2 for level, layer in _layers_outside_blocks(network))
    return TYPICAL_BATCH * flops / rates.flops + count_parts(network) * rates.launch


def _layers_outside_blocks(network: nn.Module) -> Iterator[tuple[int, Any]]:
    """Layers that every pixel passes through, each with its downsampling factor."""
    for path, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and "transformer_blocks" not in path and "time" not in path:
            yield level_at(network, path) or 1, layer


def _size(layer: Any) -> int:
    # Not `numel`: quantized weights are packed.
    if isinstance(layer, nn.Linear):
        return layer.in_features * layer.out_features
    return layer.in_channels * layer.out_channels * prod(layer.kernel_size) // layer.groups
