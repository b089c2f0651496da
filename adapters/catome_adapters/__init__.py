"""Cached Adaptive Token Merging for other people's models: where they keep their tokens, and when to merge them."""

from catome_adapters.architectures.compile import compile_blocks
from catome_adapters.architectures.find import find_sites
from catome_adapters.attach import attach
from catome_adapters.hooks.scope import Scope
from catome_adapters.hooks.scopes import SCOPES
from catome_adapters.prediction.seconds import Prediction, predict_site
from catome_adapters.recipes.calibrated import CalibratedRecipe, identify_sites
from catome_adapters.recipes.named import RECIPES
from catome_adapters.recipes.recipe import MergeRecipe
from catome_adapters.records import SiteStep
from catome_adapters.reports.summary import SessionSummary
from catome_adapters.session import MergeSession, detach, sessions
from catome_adapters.sites.grid import GridSize, Measure, PositionGrid, patches, shapes_from, sizes_from
from catome_adapters.sites.layout import BlockLayout, PerToken
from catome_adapters.sites.site import MergeSite, SkippedSite

__all__ = [
    "RECIPES",
    "SCOPES",
    "BlockLayout",
    "CalibratedRecipe",
    "GridSize",
    "Measure",
    "MergeRecipe",
    "MergeSession",
    "MergeSite",
    "PerToken",
    "PositionGrid",
    "Prediction",
    "Scope",
    "SessionSummary",
    "SiteStep",
    "SkippedSite",
    "attach",
    "compile_blocks",
    "detach",
    "find_sites",
    "identify_sites",
    "patches",
    "predict_site",
    "sessions",
    "shapes_from",
    "sizes_from",
]
