"""A UNet, and options of recipes."""

from itertools import product
from typing import Any

import pytest

from running import SCOPES
from zoo.unets import deep_unet


@pytest.fixture(
    params=product(SCOPES, ("pad", "fill"), (True, False)),
    ids=lambda one: f"{one[0]}-{one[1]}-{'proportional' if one[2] else 'plain'}",
)
def merging(request) -> dict[str, Any]:
    """How blocks merge: scope, spare and proportional."""
    return dict(zip(("scope", "spare", "proportional"), request.param, strict=True))


@pytest.fixture
def unet() -> Any:
    return deep_unet()
