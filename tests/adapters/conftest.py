"""Fixtures that the tests of several folders share."""

from typing import Any

import pytest

from running import SCOPES, VARIANTS, Variant, spell
from zoo.unets import small_unet


@pytest.fixture(params=SCOPES)
def scope(request) -> str:
    return request.param


@pytest.fixture(params=VARIANTS, ids=spell)
def variant(request) -> Variant:
    return request.param


@pytest.fixture
def small() -> Any:
    return small_unet()
