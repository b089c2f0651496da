"""An architecture by its name, and its network."""

from typing import Any

import pytest

from zoo.architecture import Architecture
from zoo.transformers import ALL_ARCHITECTURES


@pytest.fixture
def subject(name) -> Architecture:
    return ALL_ARCHITECTURES[name]


@pytest.fixture
def network(subject) -> Any:
    return subject.network()
