"""Why a run merged nothing, in one sentence with the remedy."""

from __future__ import annotations

from collections.abc import Sequence

from catome_adapters.prediction.rates import rates_for
from catome_adapters.recipes.recipe import MergeRecipe
from catome_adapters.records import StepRecord
from catome_adapters.sites.grid import Shape
from catome_core import AdaptiveMerge, Lattice


def explain_unmerged(records: Sequence[StepRecord], recipe: MergeRecipe, default: Shape | None) -> str | None:
    """Why a run merged nothing at all; None if it did, if its recipe asks for nothing else, or if `attach` has said so.

    Args:
        records: Of the run.
        recipe: Of the session.
        default: The size of the first site's grid at the model's default size, about which `attach` warns.
    """
    if records and not any(record.merging for record in records):
        first, last = records[0].step, records[-1].step
        steps = f"step {first}" if first == last else f"steps {first} to {last}"
        return (
            f"nothing merged in this run of {steps}, which are not in the part of the schedule in which the recipe "
            f"merges, during={recipe.during}. Draw in more steps, or merge in all: during=(0.0, 1.0)"
        )
    # In a run that is left alone, all steps have the same ones.
    plans = [*{id(plan): plan for record in records if record.merging for plan in record.plans}.values()]
    tried = [plan for plan in plans if plan.merged]
    asked = isinstance(recipe.policy, Lattice) or recipe.policy.threshold < 1
    if not plans or not asked or (tried and not recipe.policy.adapts) or any(plan.merges for plan in plans):
        return None
    why, remedy = _about_policy(recipe.policy)
    if tried and len(records) == 1:
        why = "without a capacity tokens merge after the first checkpoint, and this run has a single step"
    if not tried and plans[0].key:
        shape, runs_ahead = plans[0].key.grid.shape, rates_for(plans[0].key.device).runs_ahead
        # `attach` speaks of compiled code, which is the same on a CPU.
        if shape == default and recipe.levels == "auto" and not runs_ahead:
            return None
        why = f"{' x '.join(map(str, shape))} tokens are predicted to be too few to gain time"
        if runs_ahead:
            why += " without compilation, in which launching operations takes longer than computing them"
            remedy = f"compile the blocks (compile_blocks), {remedy}"
    return (
        f"nothing merged in this run at {plans[0].name} and what else has its recipe: {why}. Draw larger pictures, "
        f'{remedy}, or merge anyway: levels="all"'
    )


def _about_policy(policy: AdaptiveMerge | Lattice) -> tuple[str, str]:
    """Why it may merge nothing, and what helps."""
    if isinstance(policy, Lattice):
        return "its keys are too few to gain time", "give a larger stride"
    why = f"too few tokens are more similar than threshold={policy.threshold} to gain time"
    return why, 'lower the threshold, give a capacity, use scope="block"'
