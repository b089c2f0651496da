"""Forecast what merging gains in a network at a size, from the arithmetic alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

from torch import nn

from catome_adapters import SCOPES, CalibratedRecipe, MergeRecipe, MergeSite, find_sites
from catome_adapters.architectures.unet import is_unet
from catome_adapters.compatibility import check_attachable
from catome_adapters.prediction.choose import choose_calibrated
from catome_adapters.prediction.levels import choose_levels, predict_levels
from catome_adapters.prediction.network import network_seconds, part_of_network
from catome_adapters.prediction.rates import rates_for
from catome_adapters.prediction.shares import assumed_share
from catome_adapters.prediction.worth import MIN_GAIN
from catome_adapters.recipes.calibrated import Recipe
from catome_adapters.recipes.decide import decide
from catome_adapters.recipes.parts import weighted_parts
from catome_adapters.sites.weights import Flops, count_weights
from catome_bench.planning.blueprint import Blueprint
from catome_bench.planning.grids import Pixels, input_size, sites_at
from catome_bench.planning.site_forecast import SiteForecast, count_tokens, default_grid, forecast_site
from catome_bench.planning.unet_flops import count_flops


class Forecast(NamedTuple):
    """The arithmetic of one call of each network of a model, for one sample.

    Attributes:
        sites: All of them, with their grids at the size in question.
        total: FLOPs of the networks.
        counted: Whether these are all FLOPs, as in UNets, or those on tokens of the grid in blocks.
        recipes: Of every site that is attached, by its name, with what "auto" in a lattice stands for.
        seconds: Predicted time of the unmerged networks.
        device_type: "cpu" or "cuda".
        denoises: Whether the networks are called step by step.
    """

    sites: list[SiteForecast]
    total: Flops
    counted: bool
    recipes: dict[str, MergeRecipe]
    seconds: float
    device_type: str
    denoises: bool

    @property
    def levels(self) -> list[int]:
        """The levels of the sites that are attached."""
        return sorted({one.site.level for one in self.sites if one.site.name in self.recipes})

    @property
    def distinct_recipes(self) -> list[MergeRecipe]:
        """Each recipe once."""
        return list(dict.fromkeys(self.recipes.values()))

    @property
    def speedup(self) -> float:
        """Expected over a run, with the cost of merging, and with the steps that do not merge."""
        return self.seconds / (self.seconds - sum(one.gain for one in self.sites))

    @property
    def merging(self) -> list[MergeSite]:
        """The sites that merge at this size."""
        return [one.site for one in self.sites if one.merges]

    @property
    def kept(self) -> float:
        """Share of the tokens that is left, or of the keys that a query sees, at the first site that merges.

        Where cells change in the run, the mean over the steps that merge.
        """
        if not self.merging:
            return 1.0
        first = self.merging[0]
        parts = weighted_parts(self.recipes[first.name])
        return 1 - sum(share * assumed_share(default_grid(first, one), one) for one, share in parts)

    def ceiling(self, sites: Iterable[MergeSite], removed: float, scope: str) -> float:
        """Speed-up of all networks together if removing this share of the tokens of these sites were free."""
        return 1 / (1 - self.share(sites, scope, removed))

    def share(self, sites: Iterable[MergeSite], scope: str, removed: float = 1.0) -> float:
        """Share of the FLOPs that the scope saves on these sites when this share of their tokens is removed."""
        saved = (SCOPES[scope].saved_flops(count_weights(site), count_tokens(site), removed) for site in sites)
        return sum(map(sum, saved)) / sum(self.total)


def forecast(model: Blueprint, pixels: Pixels, recipe: Recipe, device_type: str, *, compiled: bool = False) -> Forecast:
    """Forecast what a recipe gains on a device, in eager or compiled code.

    Args:
        model: The networks, in the dtype that they are called in.
        pixels: Size of pictures or videos (frames, height, width), None: the model's own.
        recipe: The recipe.
        device_type: "cpu" or "cuda".
        compiled: Whether the networks are compiled.

    Raises:
        ValueError: If there is nothing to merge, the recipe does not fit, or the size is unknown or does not fit.
    """
    by_network = {name: sites_at(network, pixels, model.scale) for name, network in model.networks.items()}
    # "auto" chooses for the size that the configuration names, as `attach` does.
    own = _named({name: find_sites(network) for name, network in model.networks.items()})
    recipes, layout = _choose(model, own, recipe, device_type)
    rates = rates_for(device_type, compiled=compiled)
    attached = [site for site in own if site.name in recipes]
    part = part_of_network(model.networks.values(), own, attached, layout, rates)
    parts = [_count(model.networks[name], one, pixels, model.scale) for name, one in by_network.items()]
    total = Flops(sum(part.linear for part in parts), sum(part.attention for part in parts))
    counted = all(map(is_unet, model.networks.values()))
    sized = _named(by_network)
    seconds = network_seconds(model.networks.values(), sized, layout, rates)
    sites = [
        forecast_site(site, recipes.get(site.name, layout), part, device_type, compiled, site.name in recipes)
        for site in sized
    ]
    return Forecast(sites, total, counted, recipes, seconds, device_type, model.denoises)


def _named(by_network: Mapping[str, Sequence[MergeSite]]) -> list[MergeSite]:
    """The sites of all networks; with several, their names begin with the network's, as in a pipeline."""
    if len(by_network) == 1:
        return [*chain.from_iterable(by_network.values())]
    return [replace(site, name=f"{name}.{site.name}") for name, sites in by_network.items() for site in sites]


def _choose(
    model: Blueprint, own: Sequence[MergeSite], recipe: Recipe, device_type: str
) -> tuple[dict[str, MergeRecipe], MergeRecipe]:
    """The recipe of every site that is attached, by its name, and the one that the figures of the others are for."""
    if isinstance(recipe, CalibratedRecipe):
        chosen = choose_calibrated(recipe, own, None).sites
        return {site.name: one for one, sites in chosen.items() for site in sites}, next(iter(chosen))
    recipe = decide(recipe, own)
    check_attachable(own, recipe)
    network = network_seconds(model.networks.values(), own, recipe, rates_for(device_type, compiled=True))
    gains = predict_levels(own, recipe, device_type) if recipe.levels == "auto" else {}
    levels = choose_levels(own, recipe.levels, gains, MIN_GAIN * network)
    return {site.name: recipe for site in own if site.level in levels}, recipe


def _count(network: nn.Module, sites: list[MergeSite], pixels: Pixels, scale: tuple[int, int]) -> Flops:
    blocks = [count_weights(site).saved_in_block(count_tokens(site), 1) for site in sites]
    linear, attention = (sum(parts) for parts in zip(*blocks, strict=True))
    if is_unet(network):
        linear = count_flops(network, input_size(network, pixels, scale)) - attention
    return Flops(linear, attention)
