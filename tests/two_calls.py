"""A step that calls a network twice, say for "cond" and for "uncond", and the ways to tell the calls apart."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from catome_adapters import MergeRecipe
from probes import CountingMerge
from running import TOTAL, make_recipe
from zoo.architecture import Architecture

CONTEXTS = ("cond", "uncond")


def counting_recipe(scope: str = "keys", **options: Any) -> MergeRecipe:
    return make_recipe(scope, CountingMerge, **options)


@contextmanager
def by_begin_step(session: Any, network: nn.Module, step: int, context: str) -> Iterator[None]:
    session.begin_step(step, TOTAL, context=context)
    yield


@contextmanager
def by_cache_context(session: Any, network: Any, step: int, context: str) -> Iterator[None]:
    if context == "cond":
        session.begin_step(step, TOTAL)
    with network.cache_context(context):
        yield


@contextmanager
def by_fields(session: Any, network: Any, step: int, context: str) -> Iterator[None]:
    with network.cache_context(context, step_index=step, num_inference_steps=TOTAL):
        yield


@contextmanager
def by_order(session: Any, network: nn.Module, step: int, context: str) -> Iterator[None]:
    if context == "cond":
        session.begin_step(step, TOTAL)
    yield


DRIVERS = [by_begin_step, by_cache_context, by_fields, by_order]


@torch.no_grad()
def two_calls(
    driver: Any, session: Any, subject: Architecture, network: nn.Module, steps: Any = range(TOTAL)
) -> Tensor:
    """What every step predicts, a sample from each of two calls."""
    outputs = []
    for step in steps:
        for index, context in enumerate(CONTEXTS):
            with driver(session, network, step, context):
                outputs.append(network(**one_sample(subject, step, index), return_dict=False)[0])
    return torch.stack(outputs)


def one_sample(subject: Architecture, step: int, index: int = 0) -> dict[str, Any]:
    """The inputs of one of the two samples of a step; what has no batch dimension stays as it is."""
    arguments = subject.inputs(seed=step).items()
    batched = {name for name, value in arguments if isinstance(value, Tensor) and len(value) == 2}
    return {name: value[index : index + 1] if name in batched else value for name, value in arguments}


@torch.no_grad()
def call_alone(subject: Architecture, network: Any, step: int = 0) -> None:
    """One call, of one sample of a step."""
    network(**one_sample(subject, step))
