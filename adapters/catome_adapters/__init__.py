"""Cached Adaptive Token Merging for other people's models: where they keep their tokens, and when to merge them."""

from catome_adapters.attaching import attach
from catome_adapters.compiling import compile_blocks
from catome_adapters.layouts import BlockLayout, Follow
from catome_adapters.recipe import RECIPES, MergeRecipe
from catome_adapters.report import SessionSummary, SiteStep
from catome_adapters.session import MergeSession
from catome_adapters.sites import MergeSite, SkippedSite
from catome_adapters.surveying import find_sites

__all__ = [
    "RECIPES",
    "BlockLayout",
    "Follow",
    "MergeRecipe",
    "MergeSession",
    "MergeSite",
    "SessionSummary",
    "SiteStep",
    "SkippedSite",
    "attach",
    "compile_blocks",
    "find_sites",
]
