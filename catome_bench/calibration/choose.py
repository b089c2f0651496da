"""The best choices of one setting for each group: a knapsack with several choices, solved exactly."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import product
from typing import NamedTuple

from catome_bench.calibration.candidates import LATTICES, WHOLE
from catome_bench.calibration.damage import Effect


class Choice(NamedTuple):
    """Settings of some groups; the others are left whole.

    Attributes:
        error: Sum of their squared errors: those of different blocks and parts of the run are taken for independent.
        saved: Sum of the seconds that they save.
        effects: Of each group that merges one, or one lattice for each of several parts of the run.
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
    choices = [_choice(())]
    for settings in map(_settings, groups.values()):
        choices = _unbeaten(_choice((*one.effects, *other.effects)) for one, other in product(choices, settings))
    return choices


def _settings(effects: Sequence[Effect]) -> list[Choice]:
    """What may be done with one group: nothing, one setting, or a lattice in each of several parts of the run."""
    parts: dict[str, list[Effect]] = defaultdict(list)
    for effect in effects:
        if effect.candidate in LATTICES and effect.part != WHOLE:
            parts[effect.part].append(effect)
    joined = product(*([None, *some] for some in parts.values()))
    several = (tuple(one for one in some if one is not None) for some in joined)
    return _unbeaten(map(_choice, [(), *((one,) for one in effects), *several]))


def _choice(effects: Sequence[Effect]) -> Choice:
    error, saved = (sum(figures, 0.0) for figures in ([one.error for one in effects], [one.saved for one in effects]))
    return Choice(error, saved, tuple(effects))


def _unbeaten(choices: Iterable[Choice]) -> list[Choice]:
    best: list[Choice] = []
    for choice in sorted(choices, key=lambda one: (one.error, -one.saved)):
        if not best or choice.saved > best[-1].saved:
            best.append(choice)
    return best
