"""A UNet, and options of recipes."""

from typing import Any

import pytest

from zoo.unets import deep_unet


@pytest.fixture(
    params=[
        ("attention", "pad", True),
        ("attention", "fill", False),
        ("keys", "pad", False),
        ("keys", "fill", True),
        ("block", "pad", True),
        ("block", "fill", True),
    ],
    ids=lambda one: f"{one[0]}-{one[1]}-{'proportional' if one[2] else 'plain'}",
)
def merging(request) -> dict[str, Any]:
    """How blocks merge: scope, spare and proportional; every pair of two of them is there, but for plain blocks."""
    return dict(zip(("scope", "spare", "proportional"), request.param, strict=True))


@pytest.fixture
def unet() -> Any:
    return deep_unet()
