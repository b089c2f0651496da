"""Cached Adaptive Token Merging as pure tensor operations: static shapes, and no state but the cache."""

from catome_core.attention.channels import attend_without_mask
from catome_core.attention.field import NearField
from catome_core.attention.intercept import InterceptAttention
from catome_core.attention.masks import attention_bias
from catome_core.attention.near import attend_near_and_far
from catome_core.attention.record import RecordKeys
from catome_core.block import MergedBlock
from catome_core.cache import PairCache
from catome_core.calls import CallMemory, backward_node, has_values, refuse_jit_trace, refuse_repeat
from catome_core.capacity import LADDER, fit_capacity
from catome_core.dither import dither_offsets
from catome_core.grid import TokenGrid, choose_destinations
from catome_core.lattice import Lattice, MovingLattice, lattice_plan
from catome_core.matching import Match, match_tokens
from catome_core.merging import gather_anchors, merge, merge_weighted, unmerge
from catome_core.planning import MergePlan, PlanIndex, count_overflow, count_unmergeable, plan_merge
from catome_core.plans import compose, extend, sort_slots
from catome_core.policy import AdaptiveMerge
from catome_core.schedule import PAPER_SCHEDULES, CheckpointSchedule
from catome_core.storage import PlanKey
from catome_core.summary import PlanSummary, jaccard_distance, summarize
from catome_core.warning import MergeWarning

__all__ = [
    "LADDER",
    "PAPER_SCHEDULES",
    "AdaptiveMerge",
    "CallMemory",
    "CheckpointSchedule",
    "InterceptAttention",
    "Lattice",
    "Match",
    "MergePlan",
    "MergeWarning",
    "MergedBlock",
    "MovingLattice",
    "NearField",
    "PairCache",
    "PlanIndex",
    "PlanKey",
    "PlanSummary",
    "RecordKeys",
    "TokenGrid",
    "attend_near_and_far",
    "attend_without_mask",
    "attention_bias",
    "backward_node",
    "choose_destinations",
    "compose",
    "count_overflow",
    "count_unmergeable",
    "dither_offsets",
    "extend",
    "fit_capacity",
    "gather_anchors",
    "has_values",
    "jaccard_distance",
    "lattice_plan",
    "match_tokens",
    "merge",
    "merge_weighted",
    "plan_merge",
    "refuse_jit_trace",
    "refuse_repeat",
    "sort_slots",
    "summarize",
    "unmerge",
]
