"""Calibration with times that do not depend on the machine, and with few settings."""

from collections.abc import Iterator

import pytest

from catome_bench.calibration import candidates, damage
from catome_bench.calibration.clock import UNMERGED


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as one:
        yield one


@pytest.fixture(scope="module")
def saves(patch) -> None:
    """Every step that merges saves a thousandth of a second."""
    patch.setattr(
        damage, "seconds_saved", lambda by_call, kinds, unmerged: sum(kind != UNMERGED for kind in kinds) / 1000
    )


@pytest.fixture(scope="module")
def few(patch) -> None:
    """One lattice and half of the keys, in the whole run and in its late third."""
    for name in ("1/2 of the keys", "1/8 of the keys", "1/16 of the keys"):
        patch.delitem(candidates.LATTICES, name)
    for part in ("early", "middle"):
        patch.delitem(candidates.PARTS, part)
    patch.setattr(candidates, "MATCHED_SCOPES", ("keys",))
