"""A UNet, and options of recipes."""

from typing import Any

import pytest

from running import spell
from tiers import tiered
from zoo.unets import deep_unet

MERGING = [
    {"scope": "attention", "spare": "fill", "proportional": False},
    {"scope": "keys", "spare": "pad", "proportional": False},
    {"scope": "block", "spare": "pad", "proportional": True},
    {"scope": "attention", "spare": "pad", "proportional": True},
    {"scope": "keys", "spare": "fill", "proportional": True},
    {"scope": "block", "spare": "fill", "proportional": True},
]


@pytest.fixture(params=tiered(MERGING, MERGING[:3]), ids=spell)
def merging(request) -> dict[str, Any]:
    """How blocks merge; every pair of two options is there, but for plain blocks."""
    return request.param


@pytest.fixture
def unet() -> Any:
    return deep_unet()
