"""Architectures and scopes to try.

In `make test`, what is merged is checked on ten architectures in every scope, and on the others in one, in turn; what a
session leaves behind is checked on the ten, in one scope each.
"""

from itertools import starmap

from tiers import tiered
from zoo.transformers import ALL_ARCHITECTURES, ARCHITECTURES, SCOPES_THAT_WORK


def in_turn(number: int, name: str) -> tuple[str, str]:
    """An architecture and one of its scopes, of the next one another."""
    cases = [case for case in SCOPES_THAT_WORK if case[0] == name]
    return cases[number % len(cases)]


IN_TURN = [*starmap(in_turn, enumerate(ALL_ARCHITECTURES))]
EVERY_SCOPE = tiered(SCOPES_THAT_WORK, IN_TURN + [case for case in SCOPES_THAT_WORK if case[0] in ARCHITECTURES])
SCOPE_OF_TEN = tiered(SCOPES_THAT_WORK, [case for case in IN_TURN if case[0] in ARCHITECTURES])
TEN = tiered(ALL_ARCHITECTURES, ARCHITECTURES)
