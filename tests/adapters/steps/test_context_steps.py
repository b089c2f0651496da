"""Steps and contexts: which of them begin a run, and whose steps count."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from catome_adapters import attach
from running import TOTAL
from two_calls import CONTEXTS, call_alone, counting_recipe, one_sample
from zoo.architecture import Architecture
from zoo.noise import noise
from zoo.pipeline_parts import ddim


@torch.no_grad()
def recomputed_calls(network: nn.Module, subject: Architecture, calls: Any) -> list[int]:
    """The calls that recompute, of those at these steps in these contexts."""
    recipe = counting_recipe()
    with attach(network, recipe) as session:
        recipe.policy.watch(network)
        for step, context in calls:
            session.begin_step(step, TOTAL, context=context)
            call_alone(subject, network, step)
    return recipe.policy.recomputed


@pytest.mark.parametrize(
    ("calls", "recomputed"),
    [
        ([(1, "a"), (1, "b"), (2, "a"), (2, "b")], [0, 1]),  # the same step in another context goes on
        ([(1, None), (1, "b"), (2, "b"), (2, None)], [0, 1]),  # no name is a name too
        ([(1, "a"), (1, "b"), (0, "b"), (0, "a")], [0, 1, 2, 3]),
        ([(0, "a"), (1, "b"), (2, "a"), (2, "b")], [0, 1]),  # a context has not missed what was before its first call
        ([(1, "a"), (1, "b"), (3, "a"), (4, "b"), (4, "a"), (5, "b")], [0, 1, 2, 3]),  # b did not run at the checkpoint
    ],
)
def test_contexts_given_by_begin_step(calls, recomputed, network, subject):
    assert recomputed_calls(network, subject, calls) == recomputed


@torch.no_grad()
def test_same_step_in_the_same_context_is_a_new_run(network, subject):
    with attach(network, counting_recipe()) as session:
        for step, context in ((1, "a"), (1, "b"), (2, "a"), (2, "b"), (2, "a")):
            session.begin_step(step, TOTAL, context=context)
            call_alone(subject, network, step)
        assert {name.partition(" ")[2] for name in session.plans()} == {"(a)"}
        assert {row.step for row in session.summary().rows} == {2}


def test_steps_of_the_caller_go_before_those_of_the_context(network, subject):
    recipe = counting_recipe()
    with attach(network, recipe) as session, torch.no_grad():
        recipe.policy.watch(network)
        for step in range(TOTAL):
            session.begin_step(step, TOTAL)
            with network.cache_context("cond", step_index=0, num_inference_steps=2):
                call_alone(subject, network, step)
    assert recipe.policy.recomputed == [0, 3]


def test_steps_of_the_scheduler_go_before_those_of_the_context(network, subject):
    recipe, scheduler = counting_recipe(), ddim()
    with attach(SimpleNamespace(transformer=network, scheduler=scheduler), recipe), torch.no_grad():
        recipe.policy.watch(network)
        scheduler.set_timesteps(TOTAL)
        for step, timestep in enumerate(scheduler.timesteps):
            with network.cache_context("cond", step_index=0, num_inference_steps=2):
                call_alone(subject, network, step)
            scheduler.step(noise(1), timestep, noise(1))
    assert recipe.policy.recomputed == [0, 3]


@torch.no_grad()
def test_context_without_steps_recomputes_always(network, subject):
    recipe = counting_recipe()
    with attach(network, recipe):
        recipe.policy.watch(network)
        with pytest.warns(UserWarning, match="begin_step"):
            in_both(network, one_sample(subject, 0))
        in_both(network, one_sample(subject, 0))
    assert recipe.policy.recomputed == [0, 1, 2, 3]


def in_both(network: Any, inputs: dict[str, Any]) -> None:
    for context in CONTEXTS:
        with network.cache_context(context):
            network(**inputs)


@torch.no_grad()
def test_context_within_another_ends_before_it(network, subject):
    """Also by an error."""
    with attach(network, counting_recipe()) as session:
        session.begin_step(0, TOTAL, context="outer")
        with network.cache_context("middle"):
            with pytest.raises(ZeroDivisionError):
                fail_inside(network, one_sample(subject, 0))
            call_alone(subject, network)
        call_alone(subject, network)
        labels = {name.partition(" ")[2] for name in session.plans()}
    assert labels == {"(outer)", "(middle)", "(inner)"}


def fail_inside(network: Any, inputs: dict[str, Any]) -> None:
    with network.cache_context("inner"):
        network(**inputs)
        raise ZeroDivisionError
