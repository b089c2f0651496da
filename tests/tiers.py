"""Cases that run in `make test`, and those that are left to `make thorough`.

Ten architectures are run through every scope in `make test`, each of the others through one, in turn.
"""

from collections.abc import Collection, Iterable
from itertools import starmap
from typing import Any

import pytest

from zoo.transformers import ALL_ARCHITECTURES, ARCHITECTURES, SCOPES_THAT_WORK

thorough = pytest.mark.thorough


def tiered(cases: Iterable[Any], always: Collection[Any]) -> list[Any]:
    """The cases, each a tuple of values or a value; those that are not `always` run are marked."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=[] if case in always else thorough)
        for case in cases
    ]


def in_turn(number: int, name: str) -> tuple[str, str]:
    """An architecture and one of its scopes, of the next one another."""
    cases = [case for case in SCOPES_THAT_WORK if case[0] == name]
    return cases[number % len(cases)]


OF_TEN = [case for case in SCOPES_THAT_WORK if case[0] in ARCHITECTURES]
EVERY_SCOPE = tiered(SCOPES_THAT_WORK, [*OF_TEN, *starmap(in_turn, enumerate(ALL_ARCHITECTURES))])
SCOPES_OF_TEN = tiered(SCOPES_THAT_WORK, OF_TEN)
TEN = tiered(ALL_ARCHITECTURES, ARCHITECTURES)
