"""What merging is predicted to do at one site."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch

from catome_adapters import MergeRecipe, MergeSite, Prediction, predict_site
from catome_adapters.prediction.network import NetworkPart
from catome_adapters.prediction.seconds import TYPICAL_BATCH, typical_grid
from catome_adapters.prediction.worth import Worth
from catome_adapters.recipes.parts import share_of_run, weighted_parts
from catome_adapters.sites.weights import count_weights
from catome_core import PlanKey, TokenGrid


class SiteForecast(NamedTuple):
    """A site at its size.

    Attributes:
        site: The site.
        prediction: What merging does to a call there, mean over the steps that merge.
        merges: Whether it merges in any.
        gain: Seconds that a call gains, mean over all steps.
    """

    site: MergeSite
    prediction: Prediction
    merges: bool
    gain: float


def forecast_site(
    site: MergeSite, recipe: MergeRecipe, part: NetworkPart, device_type: str, compiled: bool, attached: bool
) -> SiteForecast:
    """Forecast for a site with a grid; `part` is that of the attached sites in the networks."""
    predictions: list[tuple[Prediction, float]] = []
    gain, merges = 0.0, False
    for one, share in weighted_parts(recipe):
        grid = default_grid(site, one)
        prediction = predict_site(site, one, grid, device_type=device_type, compiled=compiled)
        predictions.append((prediction, share))
        key = PlanKey(TYPICAL_BATCH, grid, torch.device(device_type), torch.float32)
        worth = Worth(one, part, site.denoises)
        if attached and worth.at_size(count_weights(site), key, None, compiled=compiled):
            gain, merges = gain + share_of_run(one) * prediction.gain, True
    first, _ = predictions[0]
    saved, overhead = (sum(share * getattr(one, name) for one, share in predictions) for name in ("saved", "overhead"))
    return SiteForecast(site, first._replace(saved=saved, overhead=overhead), merges, gain)


def default_grid(site: MergeSite, recipe: MergeRecipe) -> TokenGrid:
    """The grid of a site that has one."""
    grid = typical_grid(site, recipe)
    assert grid is not None, f"{site.name} has no grid"
    return grid


def count_tokens(site: MergeSite) -> int:
    """Tokens of a site that may merge; 0 if its grid is unknown."""
    return prod(site.shape) if site.shape else 0
