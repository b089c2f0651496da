"""Cached Adaptive Token Merging as pure tensor operations: static shapes, and no state but the cache."""

from catome_core.attending import attend_without_mask
from catome_core.block import MergedBlock
from catome_core.cache import PairCache
from catome_core.grid import TokenGrid, choose_destinations
from catome_core.matching import Match, match_tokens
from catome_core.merging import attention_bias, gather_anchors, merge, unmerge
from catome_core.planning import MergePlan, count_overflow, plan_merge
from catome_core.policy import AdaptiveMerge
from catome_core.schedule import PAPER_SCHEDULES, CheckpointSchedule
from catome_core.summary import PlanSummary, jaccard_distance, summarize

__all__ = [
    "PAPER_SCHEDULES",
    "AdaptiveMerge",
    "CheckpointSchedule",
    "Match",
    "MergePlan",
    "MergedBlock",
    "PairCache",
    "PlanSummary",
    "TokenGrid",
    "attend_without_mask",
    "attention_bias",
    "choose_destinations",
    "count_overflow",
    "gather_anchors",
    "jaccard_distance",
    "match_tokens",
    "merge",
    "plan_merge",
    "summarize",
    "unmerge",
]
