"""Every vision transformer, and its network."""

from typing import Any

import pytest

from tiers import tiered
from zoo.vits import VITS, Vit


@pytest.fixture(params=tiered(VITS, [*VITS][::3]))
def vit(request) -> Vit:
    return VITS[request.param]


@pytest.fixture
def network(vit) -> Any:
    return vit.network()
