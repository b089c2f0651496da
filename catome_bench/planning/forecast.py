"""Forecast what merging gains in a network at a size, from the arithmetic alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import prod
from typing import NamedTuple

import torch
from torch import nn

from catome_adapters import SCOPES, MergeRecipe, MergeSite, Prediction, find_sites, predict_site
from catome_adapters.architectures.unet import is_unet
from catome_adapters.compatibility import check_attachable
from catome_adapters.prediction.levels import choose_levels, predict_levels, with_near_field
from catome_adapters.prediction.network import blocks_share, network_seconds
from catome_adapters.prediction.rates import rates_for
from catome_adapters.prediction.seconds import TYPICAL_BATCH, assumed_share, typical_grid
from catome_adapters.prediction.worth import MIN_GAIN, Worth
from catome_adapters.sites.weights import Flops, count_weights
from catome_bench.planning.blueprint import Blueprint
from catome_bench.planning.grids import Pixels, input_size, sites_at
from catome_bench.planning.unet_flops import count_flops
from catome_core import PlanKey


class SiteForecast(NamedTuple):
    """A site at its size, what merging is predicted to do there, and whether it merges."""

    site: MergeSite
    prediction: Prediction
    merges: bool


class Forecast(NamedTuple):
    """The arithmetic of one call of each network of a model, for one sample.

    Attributes:
        sites: All of them, with their grids at the size in question.
        total: FLOPs of the networks.
        counted: Whether these are all FLOPs, as in UNets, or those on tokens of the grid in blocks.
        levels: The levels that are attached.
        seconds: Predicted time of the unmerged networks.
        recipe: The recipe, with what "auto" in its lattice stands for.
        device_type: "cpu" or "cuda".
        denoises: Whether the networks are called step by step.
    """

    sites: list[SiteForecast]
    total: Flops
    counted: bool
    levels: list[int]
    seconds: float
    recipe: MergeRecipe
    device_type: str
    denoises: bool

    @property
    def speedup(self) -> float:
        """Expected over a run, with the cost of merging."""
        return self.seconds / (self.seconds - sum(one.prediction.gain for one in self.sites if one.merges))

    @property
    def merging(self) -> list[MergeSite]:
        """The sites that merge at this size."""
        return [one.site for one in self.sites if one.merges]

    @property
    def kept(self) -> float:
        """Share of the tokens that is left, or of the keys that a query sees, at the first site that merges."""
        grid = typical_grid(self.merging[0], self.recipe) if self.merging else None
        return 1.0 if grid is None else 1 - assumed_share(grid, self.recipe)

    def ceiling(self, sites: Iterable[MergeSite], removed: float, scope: str) -> float:
        """Speed-up of all networks together if removing this share of the tokens of these sites were free."""
        return 1 / (1 - self.share(sites, scope, removed))

    def share(self, sites: Iterable[MergeSite], scope: str, removed: float = 1.0) -> float:
        """Share of the FLOPs that the scope saves on these sites when this share of their tokens is removed."""
        saved = (SCOPES[scope].saved_flops(count_weights(site), count_tokens(site), removed) for site in sites)
        return sum(map(sum, saved)) / sum(self.total)


def count_tokens(site: MergeSite) -> int:
    """Tokens of a site that may merge; 0 if its grid is unknown."""
    return prod(site.shape) if site.shape else 0


def forecast(model: Blueprint, pixels: Pixels, recipe: MergeRecipe, device_type: str) -> Forecast:
    """Forecast what a recipe gains on a device, for pictures or videos of (frames, height, width), None: its own.

    Raises:
        ValueError: If there is nothing to merge, the recipe does not fit, or the size is unknown or does not fit.
    """
    by_network = {name: sites_at(network, pixels, model.scale) for name, network in model.networks.items()}
    # "auto" chooses for the size that the configuration names, as `attach` does.
    own = [site for network in model.networks.values() for site in find_sites(network)]
    recipe = with_near_field(recipe, own)
    check_attachable(own, recipe)
    network = network_seconds(model.networks.values(), own, recipe, device_type)
    gains = predict_levels(own, recipe, device_type) if recipe.levels == "auto" else {}
    levels = choose_levels(own, recipe.levels, gains, MIN_GAIN * network)
    attached = [site for site in own if site.level in levels]
    worth = Worth(recipe, blocks_share(attached, network, recipe, device_type), model.denoises)
    several = len(by_network) > 1
    sites = [
        replace(site, name=f"{name}.{site.name}") if several else site
        for name, one in by_network.items()
        for site in one
    ]
    parts = [_count(model.networks[name], one, pixels, model.scale) for name, one in by_network.items()]
    total = Flops(sum(part.linear for part in parts), sum(part.attention for part in parts))
    rates = rates_for(device_type)
    seconds = TYPICAL_BATCH * (total.linear / rates.flops + total.attention / rates.attention_flops)
    counted = all(map(is_unet, model.networks.values()))
    predicted = [_predict(site, worth, device_type, levels) for site in sites]
    return Forecast(predicted, total, counted, levels, seconds, recipe, device_type, model.denoises)


def _predict(site: MergeSite, worth: Worth, device_type: str, levels: list[int]) -> SiteForecast:
    grid = typical_grid(site, worth.recipe)
    assert grid is not None, f"{site.name} has no grid"
    prediction = predict_site(site, worth.recipe, grid, device_type=device_type)
    key = PlanKey(TYPICAL_BATCH, grid, torch.device(device_type), torch.float32)
    return SiteForecast(site, prediction, site.level in levels and worth.at_size(count_weights(site), key, None))


def _count(network: nn.Module, sites: list[MergeSite], pixels: Pixels, scale: tuple[int, int]) -> Flops:
    blocks = [count_weights(site).saved_in_block(count_tokens(site), 1) for site in sites]
    linear, attention = (sum(parts) for parts in zip(*blocks, strict=True))
    if is_unet(network):
        linear = count_flops(network, input_size(network, pixels, scale)) - attention
    return Flops(linear, attention)
