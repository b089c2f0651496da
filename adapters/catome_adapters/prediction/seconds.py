"""The time that merging would save at a site and would cost, from the arithmetic alone: nothing is run or timed."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from catome_adapters.hooks.scopes import SCOPES
from catome_adapters.recipe import MergeRecipe
from catome_adapters.sites.site import MergeSite
from catome_adapters.sites.weights import Flops, SiteWeights, count_weights
from catome_core import TokenGrid

TYPICAL_BATCH = 2
"""One picture with classifier-free guidance: the batch where none is known."""
TYPICAL_STEPS = 50
TYPICAL_REMOVED = 0.5
"""Share of the tokens that merges where the data will decide it."""
REUSE_LAUNCHES, MATCH_LAUNCHES = 6, 45
"""Kernels that a call adds when it reuses its pairs, and that matching and planning add to those."""


@dataclass(frozen=True)
class DeviceRates:
    """Rates that a device sustains, to the order of magnitude that a decision needs.

    Attributes:
        flops: FLOP/s of a matrix product.
        attention_flops: FLOP/s of fused attention.
        bandwidth: Bytes/s of copying.
        launch: Seconds that a small operation takes however small it is, without compilation.
    """

    flops: float
    attention_flops: float
    bandwidth: float
    launch: float


DEVICE_RATES = {
    "cpu": DeviceRates(flops=1.4e11, attention_flops=1.5e11, bandwidth=3e10, launch=8e-6),
    "cuda": DeviceRates(flops=4e14, attention_flops=3e14, bandwidth=3e12, launch=5e-6),
}
"""Two cores of a server's CPU in float32, and a recent data-center GPU in bfloat16."""


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


def rates_for(device_type: str) -> DeviceRates:
    """The rates of a device type such as "cpu"; every accelerator counts as "cuda"."""
    return DEVICE_RATES["cpu" if device_type == "cpu" else "cuda"]


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
    tokens, scope = grid.tokens, SCOPES[recipe.scope]

    def seconds(flops: Flops) -> float:
        return batch * (flops.linear / rates.flops + flops.attention / rates.attention_flops)

    def saved(removed: float) -> float:
        return seconds(scope.saved_flops(weights, tokens, removed))

    block = seconds(weights.saved_in_block(tokens, 1))
    ceilings = (block / (block - saved(removed)) if block else 1.0 for removed in (0.5, 0.75))
    overhead = _reuse_seconds(weights, grid, batch, recipe, rates)
    overhead += (_checkpoint_share(recipe) if denoises else 1) * _match_seconds(weights, grid, batch, recipe, rates)
    return Prediction(tokens, weights.channels, saved(_removed(grid, recipe)), overhead, *ceilings)


def predict_site(
    site: MergeSite, recipe: MergeRecipe, grid: TokenGrid, batch: int = TYPICAL_BATCH, device_type: str = ""
) -> Prediction:
    """Predict for a site on the device where its weights are, or on another `device_type`, such as "cuda"."""
    device_type = device_type or next((weight.device.type for weight in site.attention.parameters()), "cpu")
    return predict(count_weights(site), grid, batch, recipe, rates_for(device_type), denoises=site.denoises)


def typical_grid(site: MergeSite, recipe: MergeRecipe) -> TokenGrid | None:
    """The layout of a site's tokens at the model's default size; None if the model has no default size."""
    return TokenGrid(site.shape, recipe.strides(site.shape), site.prefix) if site.shape else None


def _removed(grid: TokenGrid, recipe: MergeRecipe) -> float:
    capacity = recipe.policy.capacity
    most = grid.sources / grid.tokens
    return min(TYPICAL_REMOVED, most) if capacity is None else most - grid.kept(capacity) / grid.tokens


def _checkpoint_share(recipe: MergeRecipe) -> float:
    return len(recipe.schedule.rescaled(TYPICAL_STEPS).steps) / TYPICAL_STEPS


def _reuse_seconds(weights: SiteWeights, grid: TokenGrid, batch: int, recipe: MergeRecipe, rates: DeviceRates) -> float:
    """Reading and writing tokens and slots; the sizes cost attention no more than another pass over both."""
    kept = 1 - _removed(grid, recipe)
    passes = SCOPES[recipe.scope].passes(kept) + (4 * kept if recipe.proportional else 0)
    traffic = passes * batch * grid.tokens * weights.channels * weights.itemsize
    return traffic / rates.bandwidth + REUSE_LAUNCHES * rates.launch


def _match_seconds(weights: SiteWeights, grid: TokenGrid, batch: int, recipe: MergeRecipe, rates: DeviceRates) -> float:
    """Every source times the destinations that it may match; similarities are written and read in float32."""
    radius, samples = recipe.policy.radius, 1 if recipe.policy.shared else batch
    visible = grid.destinations if radius is None else prod(min(2 * radius + 1, cells) for cells in grid.cells)
    pairs = samples * grid.sources * visible
    matrix = 2 * pairs * weights.channels / rates.flops + 8 * pairs / rates.bandwidth
    return matrix + MATCH_LAUNCHES * rates.launch
