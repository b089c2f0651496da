"""Recipes, runs and comparisons for what stands beside a session on a transformer."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from architectures import Architecture
from catome_adapters import MergeRecipe, attach
from catome_core import AdaptiveMerge, CheckpointSchedule
from models import noise

STEPS = 4
SCHEDULE = CheckpointSchedule((0, 2), of=STEPS)


def make_recipe(scope: str = "attention", *, proportional: bool = True, segment: int = 1, **policy: Any) -> MergeRecipe:
    """Half of the pairs of random tokens are above the threshold."""
    policy = {"threshold": 0.0, "capacity": 0.25} | policy
    return MergeRecipe(AdaptiveMerge(**policy), SCHEDULE, scope, proportional, levels="all", segment=segment)


def untold(scope: str = "attention") -> MergeRecipe:
    """Nothing that attention would have to know, and no padding."""
    return make_recipe(scope, proportional=False, spare="fill")


def call(subject: Architecture, network: nn.Module, step: int = 0, **options: Any) -> Tensor:
    """A prediction, with gradients, for the sample of a step."""
    size = options.pop("size", subject.sizes[0])
    sample = noise(*subject.sample(2, size), seed=step)
    return network(**subject.inputs(sample, size) | options, return_dict=False)[0]


@torch.no_grad()
def run(subject: Architecture, network: nn.Module, session: Any = None, **options: Any) -> list[Tensor]:
    """A prediction for every step; the inputs change a little from step to step."""
    predictions = []
    for step in range(STEPS):
        if session is not None:
            session.begin_step(step, STEPS)
        with network.cache_context("run") if hasattr(network, "cache_context") else nullcontext():
            predictions.append(call(subject, network, step, **options))
    return predictions


def merged(subject: Architecture, network: nn.Module, recipe: MergeRecipe, **options: Any) -> list[Tensor]:
    with attach(network, recipe) as session:
        return run(subject, network, session, **options)


def assert_same(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 0) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def differ(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return not any(torch.allclose(*pair, rtol=1e-3, atol=1e-4) for pair in zip(ours, theirs, strict=True))
