"""Cached Adaptive Token Merging for other people's models: where they keep their tokens, and when to merge them."""

from catome_adapters.attaching import attach
from catome_adapters.recipe import RECIPES, MergeRecipe
from catome_adapters.report import SessionSummary, SiteStep
from catome_adapters.session import MergeSession
from catome_adapters.sites import MergeSite, SkippedSite, find_sites

__all__ = [
    "RECIPES",
    "MergeRecipe",
    "MergeSession",
    "MergeSite",
    "SessionSummary",
    "SiteStep",
    "SkippedSite",
    "attach",
    "find_sites",
]
