"""Calibration with times that do not depend on the machine, and with few settings."""

import pytest

from catome_bench.calibration import candidates, damage, measure
from catome_bench.calibration.clock import UNMERGED


@pytest.fixture
def saves(monkeypatch) -> None:
    """Every step that merges saves a thousandth of a second."""
    monkeypatch.setattr(
        damage,
        "seconds_saved",
        lambda group, run, *_: sum(len(calls) for kind, calls in run[group].items() if kind != UNMERGED) / 1000,
    )


@pytest.fixture
def few(monkeypatch) -> None:
    """One lattice and half of the keys, in the whole run and in its second half."""
    monkeypatch.setattr(candidates, "LATTICES", {"1/4 of the keys": 2})
    monkeypatch.setattr(candidates, "MATCHED_SCOPES", ("keys",))
    for module in (damage, measure):
        monkeypatch.setattr(module, "PARTS", {part: candidates.PARTS[part] for part in ("whole run", "late")})
