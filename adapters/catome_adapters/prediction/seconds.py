"""The time that merging would save at a site and would cost, from the arithmetic alone: nothing is run or timed."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from catome_adapters.hooks.scopes import SCOPES
from catome_adapters.prediction.gathering import gather_work, weights_as_gathered
from catome_adapters.prediction.rates import DeviceRates, Work, rates_for, rates_of
from catome_adapters.prediction.shares import assumed_share, checkpoint_share
from catome_adapters.recipes.recipe import MergeRecipe
from catome_adapters.sites.site import MergeSite
from catome_adapters.sites.weights import Flops, SiteWeights, count_weights
from catome_core import Lattice, TokenGrid

TYPICAL_BATCH = 2
"""One picture with classifier-free guidance: the batch where none is known."""
REUSE_LAUNCHES, MATCH_LAUNCHES, FIT_LAUNCHES = 6, 145, 65
"""Operations that a call adds when it reuses its pairs, matching and planning to that, and planning again where the
capacity adapts, as a dispatch mode counts them."""


class SiteSeconds(NamedTuple):
    """Seconds of one call of a site.

    Attributes:
        block: What the block takes without merging.
        saved: What the shorter sequence saves.
        reuse: What merging and unmerging by known pairs takes.
        match: What matching and planning take where the pairs are recomputed.
    """

    block: float
    saved: float
    reuse: float
    match: float

    @property
    def trial(self) -> float:
        """What a checkpoint costs that finds nothing to merge."""
        return self.match + self.reuse

    def gain(self, matches: float) -> float:
        """What a call gains, if this share of the calls recomputes its pairs; negative if it loses."""
        return self.saved - self.reuse - matches * self.match


class Prediction(NamedTuple):
    """What merging does to one call of a site, on average over a run.

    Attributes:
        tokens: Tokens before the merge.
        channels: Channels of a token.
        saved: Seconds that the shorter sequence saves.
        overhead: Seconds that matching, merging and unmerging take.
        ceiling_50: Speed-up of the whole block if merging half of the tokens were free.
        ceiling_75: The same for three quarters.
    """

    tokens: int
    channels: int
    saved: float
    overhead: float
    ceiling_50: float
    ceiling_75: float

    @property
    def gain(self) -> float:
        """Seconds that merging wins a call; negative if it loses."""
        return self.saved - self.overhead


def predict(
    weights: SiteWeights, grid: TokenGrid, batch: int, recipe: MergeRecipe, rates: DeviceRates, *, denoises: bool = True
) -> Prediction:
    """Predict what merging does to one call of a site.

    Only Python numbers, so a compiler sees a constant.

    Args:
        weights: From `count_weights`.
        grid: The layout of the tokens.
        batch: Number of samples, both halves of guidance counted.
        recipe: Its scope, policy and schedule. Without a fixed capacity half of the tokens is assumed to merge.
        rates: From `rates_for`.
        denoises: Whether the recipe's schedule says which calls match; False: every call does.
    """
    scope, tokens, removed = SCOPES[recipe.scope], grid.tokens, assumed_share(grid, recipe)
    weights, rates = weights_as_gathered(weights, recipe.policy), rates.in_precision(weights.itemsize)
    seconds = site_seconds(weights, grid, batch, recipe, rates, removed)
    whole = block_work(weights, tokens, batch, rates).device
    saved = (_seconds(scope.saved_flops(weights, tokens, share), batch, rates) for share in (0.5, 0.75))
    ceilings = (whole / (whole - part) if whole else 1.0 for part in saved)
    overhead = seconds.reuse + (checkpoint_share(recipe) if denoises else 1) * seconds.match
    return Prediction(tokens, weights.channels, seconds.saved, overhead, *ceilings)


def site_seconds(
    weights: SiteWeights, grid: TokenGrid, batch: int, recipe: MergeRecipe, rates: DeviceRates, removed: float
) -> SiteSeconds:
    """Predict the parts of one call of a site, of whose tokens this share is merged away; arguments as for `predict`.

    Examples:
        >>> weights = SiteWeights(8, 8, projections=256, rest=1024, text_width=0, itemsize=4, operations=10)
        >>> rates = DeviceRates(flops=1e6, attention_flops=1e6, bandwidth=1e6, launch=1e-3)
        >>> seconds = site_seconds(weights, TokenGrid((8, 8)), 1, MergeRecipe(), rates, 0.5)
        >>> f"{seconds.block:.3f} {seconds.saved:.3f} {seconds.reuse:.3f} {seconds.match:.3f}"
        '0.305 0.115 0.016 0.228'
    """
    scope, tokens, weights = SCOPES[recipe.scope], grid.tokens, weights_as_gathered(weights, recipe.policy)
    rates = rates.in_precision(weights.itemsize)
    whole = block_work(weights, tokens, batch, rates)
    less = Work(-_seconds(scope.saved_flops(weights, tokens, removed), batch, rates), 0.0)
    reuse = _reuse_work(weights, grid, batch, recipe, rates, removed)
    match = _match_work(weights, grid, batch, recipe, rates)
    block, shorter, reusing, matching = (rates.elapsed(*[whole, less, reuse, match][:count]) for count in range(1, 5))
    return SiteSeconds(block, block - shorter, reusing - shorter, matching - reusing)


def block_work(weights: SiteWeights, tokens: int, batch: int, rates: DeviceRates) -> Work:
    """What a block computes without merging."""
    rates = rates.in_precision(weights.itemsize)
    return Work(_seconds(weights.saved_in_block(tokens, 1), batch, rates), weights.operations * rates.launch)


def predict_site(
    site: MergeSite,
    recipe: MergeRecipe,
    grid: TokenGrid,
    batch: int = TYPICAL_BATCH,
    device_type: str = "",
    *,
    compiled: bool = False,
) -> Prediction:
    """Predict the seconds of one call of a site, from the sizes of its weights and a grid.

    Args:
        site: The site.
        recipe: What to merge.
        grid: The layout of one sample's tokens.
        batch: Number of samples; guidance doubles it.
        device_type: "cpu" or "cuda"; empty: where the weights are.
        compiled: Whether the block is compiled.
    """
    rates = rates_for(device_type, compiled=compiled) if device_type else rates_of(site.attention, compiled=compiled)
    return predict(count_weights(site), grid, batch, recipe, rates, denoises=site.denoises)


def typical_grid(site: MergeSite, recipe: MergeRecipe) -> TokenGrid | None:
    """The layout of a site's tokens at the model's default size; None if the model has no default size."""
    return TokenGrid(site.shape, recipe.strides(site.shape), site.prefix) if site.shape else None


def _seconds(flops: Flops, batch: int, rates: DeviceRates) -> float:
    return batch * (flops.linear / rates.flops + flops.attention / rates.attention_flops)


def _reuse_work(
    weights: SiteWeights, grid: TokenGrid, batch: int, recipe: MergeRecipe, rates: DeviceRates, removed: float
) -> Work:
    """Reading and writing tokens and slots; the sizes cost attention no more than another pass over both."""
    if isinstance(recipe.policy, Lattice):
        return gather_work(recipe.policy, weights, grid, batch, rates)
    kept = 1 - removed
    passes = SCOPES[recipe.scope].passes(kept) + (4 * kept if recipe.proportional else 0)
    traffic = passes * batch * grid.tokens * weights.channels * weights.itemsize
    return Work(traffic / rates.bandwidth, REUSE_LAUNCHES * rates.launch + rates.hooks)


def _match_work(weights: SiteWeights, grid: TokenGrid, batch: int, recipe: MergeRecipe, rates: DeviceRates) -> Work:
    """Every source times the destinations that it may match; similarities are written and read in float32."""
    if isinstance(recipe.policy, Lattice):
        return Work(0.0, 0.0)
    radius, samples = recipe.policy.radius, 1 if recipe.policy.shared else batch
    visible = grid.destinations if radius is None else prod(min(2 * radius + 1, cells) for cells in grid.cells)
    pairs = samples * grid.sources * visible
    matrix = 2 * pairs * weights.channels / rates.flops + 8 * pairs / rates.bandwidth
    fit = FIT_LAUNCHES if recipe.policy.capacity is None else 0
    return Work(matrix, (MATCH_LAUNCHES + fit) * rates.launch)
