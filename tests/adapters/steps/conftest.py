"""A network with cache contexts."""

from typing import Any

import pytest

from zoo.architecture import Architecture
from zoo.packed_images import FLUX


@pytest.fixture
def subject() -> Architecture:
    return FLUX


@pytest.fixture
def network(subject) -> Any:
    return subject.network()
