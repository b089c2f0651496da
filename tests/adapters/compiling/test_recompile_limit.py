"""Dynamo's limit of graphs while sessions need more of them."""

import gc

import pytest
import torch

from catome_adapters import attach
from running import make_recipe
from zoo.transformers import ARCHITECTURES

LOW, HIGH = 8, 4096


@pytest.fixture(autouse=True)
def low_limit():
    gc.collect()  # sessions that other tests have left open
    with torch._dynamo.config.patch(recompile_limit=LOW):
        yield


def limit() -> int:
    return torch._dynamo.config.recompile_limit


def attach_adapting():
    return attach(ARCHITECTURES["DiT"].network(), make_recipe(capacity=None))


def test_limit_is_restored_when_the_last_session_is_detached():
    first, second = attach_adapting(), attach_adapting()
    raised = limit()
    first.detach()
    first.detach()
    assert LOW < raised == limit()
    second.detach()
    assert limit() == LOW


def test_limit_is_restored_when_a_model_is_deleted_with_its_session():
    session = attach_adapting()
    assert limit() > LOW
    del session
    gc.collect()
    assert limit() == LOW


def test_limit_that_was_set_meanwhile_stays():
    with attach_adapting():
        torch._dynamo.config.recompile_limit = HIGH
    assert limit() == HIGH
