"""The time that it takes to gather the keys of a lattice, and to attend in tiles."""

from __future__ import annotations

from math import ceil

from catome_adapters.prediction.rates import DeviceRates, Work
from catome_adapters.sites.weights import SiteWeights
from catome_core import AdaptiveMerge, Lattice, NearField, TokenGrid

GATHER_LAUNCHES, GATHER_BEHIND_LAUNCHES, NEAR_LAUNCHES = 5, 7, 34
"""Operations that a call adds which gathers its keys before their projections, behind them, or for tiles with a near
field, as a dispatch mode counts them."""
JOINED_LAUNCHES, PART_LAUNCHES = 8, 7
"""The same where the parts of a near field are joined, and for each of them; views, of which there are many, aside."""
BLOCK = 128
"""Fused attention on a GPU works on this many queries and keys at a time."""


def weights_as_gathered(weights: SiteWeights, policy: AdaptiveMerge | Lattice) -> SiteWeights:
    """With a near field every tile gathers its own keys, which no projection is spared for."""
    has_tiles = isinstance(policy, Lattice) and policy.near is not None
    return weights._replace(takes_keys=False) if has_tiles else weights


def gather_work(lattice: Lattice, weights: SiteWeights, grid: TokenGrid, batch: int, rates: DeviceRates) -> Work:
    """Reading and writing the anchors, before their projections or behind; of a near field, what `near_work` says.

    Examples:
        >>> weights = SiteWeights(channels=8, width=8, projections=256, rest=1024, text_width=0, itemsize=4)
        >>> rates = DeviceRates(flops=1e6, attention_flops=1e6, bandwidth=1e6, launch=0.0)
        >>> gather_work(Lattice(), weights, TokenGrid((8, 8)), 1, rates)
        Work(device=0.001024, host=0.0)
    """
    field = lattice.field(grid)
    if field is not None:
        return near_work(field, weights.width, batch, weights.itemsize, rates)
    kept = grid.prefix + grid.destinations
    if weights.takes_keys:
        numbers, launches = kept * weights.channels, GATHER_LAUNCHES
    else:
        numbers, launches = 2 * kept * weights.width, GATHER_BEHIND_LAUNCHES
    copied = 2 * batch * numbers * weights.itemsize
    return Work(copied / rates.bandwidth, launches * rates.launch + rates.hooks)


def near_work(field: NearField, width: int, batch: int, itemsize: int, rates: DeviceRates) -> Work:
    """What attention with a near field takes beside that of all queries to as many keys at the usual rate.

    Where all tiles gather their own keys, that is most of it. Where the parts are joined, groups of tiles share theirs.

    Args:
        field: Which keys are near.
        width: Channels of all heads together.
        batch: Number of samples.
        itemsize: Bytes of a number.
        rates: From `rates_for`.
    """
    usual, tiled = field.grid.tokens * field.keys, field.tiles * field.queries_per_tile
    if rates.joining is None or not field.has_whole_cells:
        rows, launches = 2 * (field.tiles * field.keys + field.grid.tokens), NEAR_LAUNCHES
        passes, pairs, flops = 0.0, usual, rates.tile_flops or rates.attention_flops
    else:
        parts = field.parts
        rows = 2 * sum(part.groups * part.keys for part in parts) + tiled + field.grid.tokens
        launches = JOINED_LAUNCHES + len(parts) * PART_LAUNCHES
        passes = 1 + rates.joining * len(parts)
        blocks = (part.groups * _whole(tiled // part.groups) * _whole(part.keys) for part in parts)
        pairs, flops = sum(blocks), rates.attention_flops
    row = batch * width * itemsize
    copied = 2 * rows * row / rates.bandwidth + rows * row / rates.tiling
    joined = passes * tiled * row / rates.bandwidth
    attention = 4 * batch * width * (pairs / flops - usual / rates.attention_flops)
    return Work(copied + joined + attention, launches * rates.launch + rates.hooks)


def _whole(number: int) -> int:
    return ceil(number / BLOCK) * BLOCK
