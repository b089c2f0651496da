"""The time that it takes to gather the keys of a lattice."""

from __future__ import annotations

from catome_adapters.prediction.rates import DeviceRates, Work
from catome_adapters.sites.weights import SiteWeights
from catome_core import AdaptiveMerge, Lattice, TokenGrid

GATHER_LAUNCHES, GATHER_BEHIND_LAUNCHES, NEAR_LAUNCHES = 5, 7, 34
"""Operations that a call adds which gathers its keys before their projections, behind them, or for tiles with a near
field, as a dispatch mode counts them."""


def weights_as_gathered(weights: SiteWeights, policy: AdaptiveMerge | Lattice) -> SiteWeights:
    """With a near field every tile gathers its own keys, which no projection is spared for."""
    has_tiles = isinstance(policy, Lattice) and policy.near is not None
    return weights._replace(takes_keys=False) if has_tiles else weights


def gather_work(lattice: Lattice, weights: SiteWeights, grid: TokenGrid, batch: int, rates: DeviceRates) -> Work:
    """Reading and writing the anchors, before their projections or behind; of a near field, the keys of every tile.

    What all tiles gather is large: with a near field, that is most of it.

    Examples:
        >>> weights = SiteWeights(channels=8, width=8, projections=256, rest=1024, text_width=0, itemsize=4)
        >>> rates = DeviceRates(flops=1e6, attention_flops=1e6, bandwidth=1e6, launch=0.0)
        >>> gather_work(Lattice(), weights, TokenGrid((8, 8)), 1, rates)
        Work(device=0.001024, host=0.0)
    """
    field = lattice.field(grid)
    if field is not None:
        # Keys and values of the tiles, their queries, and what these attend to.
        numbers, launches = 2 * (field.tiles * field.keys + grid.tokens) * weights.width, NEAR_LAUNCHES
    elif weights.takes_keys:
        numbers, launches = (grid.prefix + grid.destinations) * weights.channels, GATHER_LAUNCHES
    else:
        numbers, launches = 2 * (grid.prefix + grid.destinations) * weights.width, GATHER_BEHIND_LAUNCHES
    written = batch * numbers * weights.itemsize
    tiling = 0.0 if field is None else written / rates.tiling
    if field is not None and rates.tile_flops:
        flops = batch * 4 * grid.tokens * field.keys * weights.width
        tiling += flops / rates.tile_flops - flops / rates.attention_flops
    return Work(2 * written / rates.bandwidth + tiling, launches * rates.launch + rates.hooks)
