"""Cases that run in `make test`, and those that are left to `make thorough`."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def tiered(cases: Iterable[Any], always: Collection[Any]) -> list[Any]:
    """The cases, each a tuple of values or a value; those that are not `always` run are marked."""
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)), marks=() if case in always else pytest.mark.thorough
        )
        for case in cases
    ]
