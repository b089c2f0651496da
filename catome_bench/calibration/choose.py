"""The best choices of at most one setting for each group: a knapsack with several choices, solved exactly."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from catome_bench.calibration.damage import Effect


class Choice(NamedTuple):
    """Settings of some groups; the others are left whole.

    Attributes:
        error: Sum of their squared errors: those of different blocks are taken for independent.
        saved: Sum of the seconds that they save.
        effects: One for each group that merges.
    """

    error: float
    saved: float
    effects: tuple[Effect, ...]


def best_choices(effects: Iterable[Effect]) -> list[Choice]:
    """Every choice for which no other saves as much at less error, or more at the same; by rising error and saving.

    The first one merges nothing. Group by group, every choice so far is taken with every setting of the group, and
    what another one beats is dropped: no group that follows can change that.

    Examples:
        >>> effects = [Effect("up", "half", "late", 2.0, 1.0), Effect("mid", "half", "late", 1.0, 1.0)]
        >>> [(choice.error, choice.saved) for choice in best_choices(effects)]
        [(0.0, 0.0), (1.0, 1.0), (3.0, 2.0)]
    """
    groups: dict[str, list[Effect]] = defaultdict(list)
    for effect in effects:
        groups[effect.group].append(effect)
    choices = [Choice(0.0, 0.0, ())]
    for settings in groups.values():
        choices = _unbeaten([*choices, *(_with(choice, one) for choice in choices for one in settings)])
    return choices


def _with(choice: Choice, effect: Effect) -> Choice:
    return Choice(choice.error + effect.error, choice.saved + effect.saved, (*choice.effects, effect))


def _unbeaten(choices: Sequence[Choice]) -> list[Choice]:
    best: list[Choice] = []
    for choice in sorted(choices, key=lambda one: (one.error, -one.saved)):
        if not best or choice.saved > best[-1].saved:
            best.append(choice)
    return best
