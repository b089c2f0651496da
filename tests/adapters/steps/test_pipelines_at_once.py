"""Pipelines that run at the same time share nothing."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from catome_adapters import attach
from running import TOTAL, make_recipe
from tiers import tiered
from zoo.transformer_pipelines import PIPELINES, Pipeline


def test_two_pipelines_at_once_share_nothing():
    """The one draws after every step of the other."""
    subjects = PIPELINES["Wan"], PIPELINES["SD3"]
    outer, inner = (subject.build() for subject in subjects)
    inside = []

    def draw(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        inside.append(subjects[1].run(inner))
        return tensors

    with attach(outer, make_recipe("keys")), attach(inner, make_recipe("keys")):
        alone = subjects[0].run(outer), subjects[1].run(inner)
        assert torch.equal(subjects[0].run(outer, callback_on_step_end=draw), alone[0])
    assert len(inside) == TOTAL and all(torch.equal(image, alone[1]) for image in inside)


@pytest.mark.parametrize("scope", tiered(["attention", "keys", "block"], ["block"]))
def test_two_threads_draw_what_each_draws_alone(scope):
    """Each has its own model and session."""
    subjects = [PIPELINES[name] for name in ("Flux", "SD3")]
    pipes = [subject.build() for subject in subjects]
    with attach(pipes[0], make_recipe(scope)), attach(pipes[1], make_recipe(scope)):
        alone = [subject.run(pipe) for subject, pipe in zip(subjects, pipes, strict=True)]
        with ThreadPoolExecutor(2) as threads:
            drawn = list(threads.map(draw_thrice, subjects, pipes))
    assert all(torch.equal(image, expected) for images, expected in zip(drawn, alone, strict=True) for image in images)


def draw_thrice(subject: Pipeline, pipe: Any) -> list[Tensor]:
    return [subject.run(pipe) for _ in range(3)]
