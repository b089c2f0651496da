"""The time of a whole network, of which its transformer blocks are a part."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import nn

from catome_adapters.architectures.unet import is_unet, level_at
from catome_adapters.prediction.rates import DeviceRates, Work, rates_of
from catome_adapters.prediction.seconds import TYPICAL_BATCH, block_work, typical_grid
from catome_adapters.recipes.recipe import MergeRecipe
from catome_adapters.sites.site import MergeSite
from catome_adapters.sites.weights import SiteWeights, count_operations, count_weights


class NetworkPart(NamedTuple):
    """The part that the attached blocks have in their networks, without merging.

    Attributes:
        share: Of the networks' time.
        operations: Of all networks, as many as a block of these weights is the part of the device's time. Where the
            networks keep the host busy longer than the device, a block gains nothing, however long it takes the device.
    """

    share: float = 1.0
    operations: Mapping[SiteWeights, float] = MappingProxyType({})


ALL = NetworkPart()
"""Of blocks beside which the networks do nothing."""


def network_seconds(
    networks: Collection[nn.Module], sites: Sequence[MergeSite], recipe: MergeRecipe, rates: DeviceRates | None = None
) -> float:
    """Seconds of one call of these networks at their default size, without merging, from the arithmetic alone.

    Args:
        networks: The networks.
        sites: All of their transformer blocks, each with its default size; a block without one counts as nothing.
        recipe: Gives the layout of the tokens.
        rates: By default those of the networks' own device, once compiled.
    """
    rates = rates or _rates_of(networks)
    return rates.elapsed(_network_work(networks, sites, recipe, rates))


def part_of_network(
    networks: Collection[nn.Module],
    sites: Sequence[MergeSite],
    attached: Iterable[MergeSite],
    recipe: MergeRecipe,
    rates: DeviceRates | None = None,
) -> NetworkPart:
    """The part of the attached blocks, out of all `sites`; arguments as for `network_seconds`."""
    rates = rates or _rates_of(networks)
    blocks, whole = blocks_seconds(attached, recipe, rates), _network_work(networks, sites, recipe, rates)
    if not blocks:
        return ALL
    operations = sum(map(count_operations, networks))
    works = _works(sites, recipe, rates)
    parts = {count_weights(site): operations * work.device / whole.device for site, work in works}
    return NetworkPart(blocks / rates.elapsed(whole), parts)


def blocks_seconds(sites: Iterable[MergeSite], recipe: MergeRecipe, rates: DeviceRates) -> float:
    """Seconds of one call of these transformer blocks at their default size, without merging."""
    return rates.elapsed(Work(0.0, 0.0), *(work for _, work in _works(sites, recipe, rates)))


def _rates_of(networks: Collection[nn.Module]) -> DeviceRates:
    return rates_of(next(iter(networks)), compiled=True)


def _network_work(
    networks: Iterable[nn.Module], sites: Sequence[MergeSite], recipe: MergeRecipe, rates: DeviceRates
) -> Work:
    sizes = [prod(site.shape) * site.level**2 for site in sites if site.shape]
    tokens = max(sizes, default=0)
    parts = [work for _, work in _works(sites, recipe, rates)]
    parts += [_other_work(network, tokens, rates) for network in networks]
    return Work(*(sum(seconds) for seconds in zip(*parts, strict=True)))


def _works(sites: Iterable[MergeSite], recipe: MergeRecipe, rates: DeviceRates) -> Iterator[tuple[MergeSite, Work]]:
    """What each block computes at its default size, where it has one."""
    for site in sites:
        grid = typical_grid(site, recipe)
        if grid is not None:
            yield site, block_work(count_weights(site), grid.tokens, TYPICAL_BATCH, rates)


def _other_work(network: nn.Module, tokens: int, rates: DeviceRates) -> Work:
    """What a UNet computes outside of its transformer blocks, mostly convolutions; elsewhere that is next to nothing.

    Examples:
        >>> network = nn.Module()
        >>> network.down_blocks = nn.ModuleList([nn.Conv2d(2, 2, 3)])
        >>> _other_work(network, 100, rates_of(network)).device > 0
        True
    """
    if not is_unet(network):
        return Work(0.0, 0.0)
    flops = sum(2 * _size(layer) * tokens / level**2 for level, layer in _layers_outside_blocks(network))
    blocks = [module for path, module in network.named_modules() if path.endswith("transformer_blocks")]
    operations = count_operations(network) - sum(map(count_operations, blocks))
    return Work(TYPICAL_BATCH * flops / (rates.convolution_flops or rates.flops), operations * rates.launch)


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
