"""Architectures and scopes to try.

In `make test`, what is merged is checked on every architecture in one scope, of the next one another, and the laws of a
run on every third; what a session leaves behind is checked on ten.
"""

from itertools import starmap

from tiers import tiered
from zoo.transformers import ALL_ARCHITECTURES, ARCHITECTURES, SCOPES_THAT_WORK


def in_turn(number: int, name: str) -> tuple[str, str]:
    """An architecture and one of its scopes, of the next one another."""
    cases = [case for case in SCOPES_THAT_WORK if case[0] == name]
    return cases[number % len(cases)]


IN_TURN = [*starmap(in_turn, enumerate(ALL_ARCHITECTURES))]
EVERY_SCOPE = tiered(SCOPES_THAT_WORK, IN_TURN)
SCOPE_OF_EVERY_THIRD = tiered(SCOPES_THAT_WORK, IN_TURN[::3])
SCOPE_OF_TEN = tiered(SCOPES_THAT_WORK, [case for case in IN_TURN if case[0] in ARCHITECTURES])
TEN = tiered(ALL_ARCHITECTURES, ARCHITECTURES)
EVERY_THIRD = tiered(ALL_ARCHITECTURES, [*ALL_ARCHITECTURES][::3])
