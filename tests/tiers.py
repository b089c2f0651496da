"""Cases that run in `make test`, and those that are left to `make thorough`.

Ten architectures are run through every scope in `make test`, each of the others through one, in turn.
"""

from collections.abc import Collection, Iterable
from typing import Any

import pytest

from zoo.transformers import ALL_ARCHITECTURES, ARCHITECTURES, SCOPES_THAT_WORK

IN_TURN: dict[str, str] = {}
for number, name in enumerate(ALL_ARCHITECTURES):
    scopes = [scope for one, scope in SCOPES_THAT_WORK if one == name]
    IN_TURN[name] = scopes[number % len(scopes)]


def tiered(cases: Iterable[Any], always: Collection[Any]) -> list[Any]:
    """The cases, each a tuple of values or a value; those that are not `always` run are marked."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=[] if case in always else thorough)
        for case in cases
    ]


thorough = pytest.mark.thorough
OF_TEN = [case for case in SCOPES_THAT_WORK if case[0] in ARCHITECTURES]
EVERY_SCOPE = tiered(SCOPES_THAT_WORK, [*OF_TEN, *IN_TURN.items()])
SCOPES_OF_TEN = tiered(SCOPES_THAT_WORK, OF_TEN)
TEN = tiered(ALL_ARCHITECTURES, ARCHITECTURES)
