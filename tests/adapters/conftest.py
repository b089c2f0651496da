"""Fixtures that the tests of several folders share."""

from typing import Any

import pytest

from running import SCOPES, VARIANTS, Variant, spell, vary
from tiers import tiered
from zoo.unets import small_unet


@pytest.fixture(params=SCOPES)
def scope(request) -> str:
    return request.param


ALWAYS = [
    vary("attention", "input", 1),
    vary("keys", "output", 1),
    vary("block", "output", 1),
    vary("block", "input", 3),
]


@pytest.fixture(params=tiered(VARIANTS, ALWAYS), ids=spell)
def variant(request) -> Variant:
    return request.param


@pytest.fixture
def small() -> Any:
    return small_unet()
