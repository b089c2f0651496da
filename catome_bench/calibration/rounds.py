"""Drawing with a choice, and choosing again by how far its prediction was off."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from catome_bench.calibration.choose import Choice
from catome_bench.calibration.goal import Goal, Outcome

MOST_ROUNDS = 3


def reach(goal: Goal, choices: Sequence[Choice], draw: Callable[[Choice], Outcome]) -> Outcome:
    """Draw with the best choice, choose again by how far its prediction was off, at most three times; the best of all.

    Args:
        goal: What to reach.
        choices: Of `best_choices`, at least one that merges.
        draw: Finds out what a choice does.
    """
    outcomes: list[Outcome] = []
    off = 1.0
    for _ in range(MOST_ROUNDS):
        choice = goal.pick(choices, off)
        if any(choice == one.choice for one in outcomes):
            break
        outcomes.append(draw(choice))
        off = goal.off(outcomes[-1])
    return max(outcomes, key=goal.merit)
