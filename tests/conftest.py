"""Hypothesis profiles, chosen by HYPOTHESIS_PROFILE ("dev" is quick, and never the same), and fixtures."""

import gc
import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from catome_adapters.prediction import rates, seconds
from catome_adapters.prediction.worth import Worth

# A first example pays for imports and warm-up: no deadline, and no complaint about slow drawing.
EVERYWHERE = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("dev", max_examples=25, **EVERYWHERE)
settings.register_profile("ci", max_examples=20, derandomize=True, **EVERYWHERE)
settings.register_profile("thorough", max_examples=200, derandomize=True, **EVERYWHERE)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

# The tensors are tiny: threads cost more than they bring.
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """What was imported stays, and the compiler makes little garbage: looking for it took a sixth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000)


@pytest.fixture(autouse=True)
def merging_is_free(monkeypatch) -> None:
    """Tiny networks stand for large ones: on this machine merging gains at any size, however little merges."""
    monkeypatch.setitem(rates.DEVICE_RATES, "cpu", rates.DeviceRates(1.0, 1.0, float("inf"), 0.0))
    monkeypatch.setattr(seconds, "_match_work", lambda *given: rates.Work(0.0, 0.0))
    monkeypatch.setattr(Worth, "at_capacity", lambda *given: True)


@pytest.fixture
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """No graph of another test counts, and none is left."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()
