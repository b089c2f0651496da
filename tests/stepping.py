"""Recipes that count, and the calls of a network at which they should match."""

from typing import Any

from catome_adapters import MergeRecipe
from catome_core import CheckpointSchedule
from probes import CountingMerge
from running import unet_recipe

SCHEDULE = CheckpointSchedule((0, 3, 7), of=10)


def counting_recipe(schedule: CheckpointSchedule = SCHEDULE, **options: Any) -> MergeRecipe:
    """For UNets, at the levels that gain."""
    return unet_recipe(policy=CountingMerge, schedule=schedule, **{"capacity": None, "levels": "auto"} | options)


def expected_calls(schedule: CheckpointSchedule, total: int, first: int = 0) -> list[int]:
    """The calls that recompute, from 0, in a run of `total` steps of which the first ones are left out."""
    checkpoints = set(schedule.rescaled(total).steps) | {first}
    return [step - first for step in range(first, total) if step in checkpoints]
