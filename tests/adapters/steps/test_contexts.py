"""A step that calls the network more than once, say for "cond" and for "uncond": every call has pairs of its own."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from catome_adapters import attach
from catome_adapters.hooks.pairs import MAX_CALLS_PER_STEP
from catome_adapters.reports.names import group_name
from running import TOTAL, assert_close
from tiers import tiered
from two_calls import (
    CONTEXTS,
    DRIVERS,
    by_cache_context,
    by_fields,
    by_order,
    call_alone,
    counting_recipe,
    two_calls,
)
from zoo.architecture import Architecture
from zoo.pipeline_parts import ddim
from zoo.transformers import ARCHITECTURES

# A rotary embedding without a batch dimension lets the batch share one plan, unless keys merge behind it.
ALONE = {"DiT": "attention", "PixArt": "block", "SD3": "attention", "Flux": "keys", "Wan": "keys"}
WITH_CONTEXTS = [name for name in ALONE if hasattr(ARCHITECTURES[name].network(), "cache_context")]


@torch.no_grad()
def one_batch(session: Any, subject: Architecture, network: nn.Module) -> Tensor:
    outputs = []
    for step in range(TOTAL):
        session.begin_step(step, TOTAL)
        outputs += network(**subject.inputs(seed=step), return_dict=False)[0].split(1)
    return torch.stack(outputs)


POLICIES = [{"capacity": 0.25}, {"capacity": None, "threshold": 0.3, "spare": "fill"}]


@pytest.mark.parametrize("policy", tiered(POLICIES, POLICIES[1:]), ids=str)
@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("name", ALONE)
def test_two_calls_are_one_batch_of_two(name, driver, policy):
    subject = ARCHITECTURES[name]
    network = subject.network()
    if driver in (by_cache_context, by_fields) and name not in WITH_CONTEXTS:
        pytest.skip("it has no cache_context")
    recipe = counting_recipe(ALONE[name], **policy)
    with attach(network, recipe) as session:
        together = one_batch(session, subject, network)
        assert session.summary().merged_fraction > 0.1
    with attach(network, recipe) as session:
        recipe.policy.watch(network)
        apart = two_calls(driver, session, subject, network)
    assert_close(apart, together)
    assert recipe.policy.recomputed == [0, 1, 6, 7]


@pytest.mark.parametrize("driver", DRIVERS)
def test_second_run_is_the_first_one_again(driver, subject, network):
    with attach(network, counting_recipe()) as session:
        first = two_calls(driver, session, subject, network)
        assert torch.equal(two_calls(driver, session, subject, network), first)


LABELS = {by_order: {"", " (call 2)"}}


@pytest.mark.parametrize("driver", DRIVERS)
def test_summary_and_plans_name_the_context(driver, subject, network):
    with attach(network, counting_recipe()) as session:
        two_calls(driver, session, subject, network, range(2))
        labels = LABELS.get(driver, {f" ({context})" for context in CONTEXTS})
        expected = {site.name + label for site in session.sites for label in labels}
        assert {row.site for row in session.summary().rows} == expected
        assert set(session.plans()) == expected
        text = str(session.summary())
        assert all(group_name(name) in text for name in expected)
        assert [row.step for row in session.summary().rows] == [0] * len(expected) + [1] * len(expected)


def test_contexts_share_the_rung_as_a_batch_does(subject, network):
    with attach(network, counting_recipe(threshold=0.3, capacity=None)) as session:
        two_calls(by_fields, session, subject, network)
        rows = session.summary().rows
    capacities = {step: {row.capacity for row in rows if row.step == step} for step in (1, 4)}
    assert all(len(values) == 1 and max(values) < 3 / 4 for values in capacities.values())


@torch.no_grad()
def test_same_context_twice_in_a_step_is_two_calls(network, subject):
    with attach(network, counting_recipe()) as session:
        session.begin_step(0, TOTAL)
        for _ in range(2):
            with network.cache_context("cond"):
                call_alone(subject, network)
        assert {name.partition(" ")[2] for name in session.plans()} == {"(cond)", "(cond, call 2)"}


@torch.no_grad()
def test_calls_beyond_the_fourth_take_no_memory_of_their_own(network, subject):
    with attach(network, counting_recipe()) as session:
        session.begin_step(0, TOTAL)
        for _ in range(MAX_CALLS_PER_STEP):
            call_alone(subject, network)
        with pytest.warns(UserWarning, match="times in a step"):
            call_alone(subject, network)
        for _ in range(2):
            call_alone(subject, network)
        assert len(session.plans()) == MAX_CALLS_PER_STEP * len(session.sites)


@torch.no_grad()
def test_another_number_of_samples_in_the_second_call_keeps_both_pairs(network, subject):
    """Guidance that leaves layers out calls the network once more, for half of the batch."""
    recipe = counting_recipe()
    with attach(network, recipe) as session:
        recipe.policy.watch(network)
        for step in range(TOTAL):
            session.begin_step(step, TOTAL)
            network(**subject.inputs(seed=step))
            call_alone(subject, network, step)
    assert recipe.policy.recomputed == [0, 1, 6, 7]


@pytest.mark.filterwarnings("ignore:the denoising step is unknown")
@torch.no_grad()
def test_a_context_ends_with_reset_and_with_the_steps_of_a_scheduler(network, subject):
    pipeline = SimpleNamespace(transformer=network, scheduler=ddim())
    with attach(pipeline, counting_recipe()) as session:
        for end in (session.reset, lambda: pipeline.scheduler.set_timesteps(TOTAL)):
            session.begin_step(0, TOTAL, context="uncond")
            call_alone(subject, network)
            assert list(session.plans()) != [site.name for site in session.sites]
            end()
            call_alone(subject, network)
            assert list(session.plans()) == [site.name for site in session.sites]
