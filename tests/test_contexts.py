"""A step that calls the network more than once, say for "cond" and for "uncond": every call has pairs of its own."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from architectures import ARCHITECTURES, Architecture
from catome_adapters import MergeRecipe, attach, find_sites
from catome_adapters.hooks import MOST_CALLS
from catome_core import CheckpointSchedule
from models import CountingMerge, anatomy, ddim, noise

TOTAL = 6
TWICE = CheckpointSchedule((0, 3), of=TOTAL)
CONTEXTS = ("cond", "uncond")
# A rotary embedding without a batch dimension lets the batch share one plan, unless keys merge behind it.
ALONE = {"DiT": "attention", "PixArt": "block", "SD3": "attention", "Flux": "keys", "Wan": "keys"}
WITH_CONTEXTS = [name for name in ALONE if hasattr(ARCHITECTURES[name].network(), "cache_context")]


def make_recipe(scope: str = "keys", **policy: Any) -> MergeRecipe:
    return MergeRecipe(CountingMerge(**{"threshold": 0.0, "capacity": 0.25} | policy), TWICE, scope, levels="all")


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
                outputs.append(network(**sample(subject, step, index), return_dict=False)[0])
    return torch.stack(outputs)


@torch.no_grad()
def one_batch(session: Any, subject: Architecture, network: nn.Module) -> Tensor:
    outputs = []
    for step in range(TOTAL):
        session.begin_step(step, TOTAL)
        outputs += network(**both(subject, step), return_dict=False)[0].split(1)
    return torch.stack(outputs)


def both(subject: Architecture, step: int) -> dict[str, Any]:
    size = subject.sizes[0]
    return subject.inputs(noise(*subject.sample(2, size), seed=step), size)


def sample(subject: Architecture, step: int, index: int) -> dict[str, Any]:
    """The inputs of one of the two samples; what has no batch dimension stays as it is."""
    arguments = both(subject, step).items()
    batched = {name for name, value in arguments if isinstance(value, Tensor) and len(value) == 2}
    return {name: value[index : index + 1] if name in batched else value for name, value in arguments}


@pytest.mark.parametrize("policy", [{"capacity": 0.25}, {"capacity": None, "threshold": 0.3, "spare": "fill"}], ids=str)
@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("name", ALONE)
def test_two_calls_are_one_batch_of_two(name, driver, policy):
    subject = ARCHITECTURES[name]
    network = subject.network()
    if driver in (by_cache_context, by_fields) and name not in WITH_CONTEXTS:
        pytest.skip("it has no cache_context")
    recipe = make_recipe(ALONE[name], **policy)
    with attach(network, recipe) as session:
        together = one_batch(session, subject, network)
        assert session.summary().merged_fraction > 0.1
    with attach(network, recipe) as session:
        recipe.policy.watch(network)
        apart = two_calls(driver, session, subject, network)
    torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-5)
    assert recipe.policy.recomputed == [0, 1, 6, 7]


@pytest.fixture
def subject() -> Architecture:
    return ARCHITECTURES["Flux"]


@pytest.fixture
def network(subject) -> nn.Module:
    return subject.network()


@pytest.mark.parametrize("driver", DRIVERS)
def test_second_run_is_the_first_one_again(driver, subject, network):
    with attach(network, make_recipe()) as session:
        first = two_calls(driver, session, subject, network)
        assert torch.equal(two_calls(driver, session, subject, network), first)


LABELS = {by_order: {"", " (call 2)"}}


@pytest.mark.parametrize("driver", DRIVERS)
def test_summary_and_plans_name_the_context(driver, subject, network):
    with attach(network, make_recipe()) as session:
        two_calls(driver, session, subject, network, range(2))
        labels = LABELS.get(driver, {f" ({context})" for context in CONTEXTS})
        expected = {site.name + label for site in session.sites for label in labels}
        assert {row.site for row in session.summary().rows} == expected
        assert set(session.plans()) == expected
        assert all(name in str(session.summary()) for name in expected)
        assert [row.step for row in session.summary().rows] == [0] * len(expected) + [1] * len(expected)


def test_contexts_share_the_rung_as_a_batch_does(subject, network):
    with attach(network, make_recipe(threshold=0.3, capacity=None)) as session:
        two_calls(by_fields, session, subject, network)
        rows = session.summary().rows
    capacities = {step: {row.capacity for row in rows if row.step == step} for step in (1, 4)}
    assert all(len(values) == 1 and max(values) < 3 / 4 for values in capacities.values())


@torch.no_grad()
def told(network: nn.Module, subject: Architecture, calls: Any) -> list[int]:
    """The calls that recompute, of those at these steps in these contexts."""
    recipe = make_recipe()
    with attach(network, recipe) as session:
        recipe.policy.watch(network)
        for step, context in calls:
            session.begin_step(step, TOTAL, context=context)
            network(**sample(subject, step, 0), return_dict=False)
    return recipe.policy.recomputed


@pytest.mark.parametrize(
    ("calls", "recomputed"),
    [
        ([(1, "a"), (1, "b"), (2, "a"), (2, "b")], [0, 1]),  # the same step in another context goes on
        ([(1, None), (1, "b"), (2, "b"), (2, None)], [0, 1]),  # no name is a name too
        ([(1, "a"), (1, "b"), (0, "b"), (0, "a")], [0, 1, 2, 3]),
        ([(0, "a"), (1, "b"), (2, "a"), (2, "b")], [0, 1]),  # a context has not missed what was before its first call
        ([(1, "a"), (1, "b"), (3, "a"), (4, "b"), (4, "a"), (5, "b")], [0, 1, 2, 3]),  # b sat the checkpoint out
    ],
)
def test_told_contexts(calls, recomputed, network, subject):
    assert told(network, subject, calls) == recomputed


@torch.no_grad()
def test_same_step_in_the_same_context_is_a_new_run(network, subject):
    with attach(network, make_recipe()) as session:
        for step, context in ((1, "a"), (1, "b"), (2, "a"), (2, "b"), (2, "a")):
            session.begin_step(step, TOTAL, context=context)
            network(**sample(subject, step, 0))
        assert {name.partition(" ")[2] for name in session.plans()} == {"(a)"}
        assert {row.step for row in session.summary().rows} == {2}


def test_steps_of_the_caller_go_before_those_of_the_context(network, subject):
    recipe = make_recipe()
    with attach(network, recipe) as session, torch.no_grad():
        recipe.policy.watch(network)
        for step in range(TOTAL):
            session.begin_step(step, TOTAL)
            with network.cache_context("cond", step_index=0, num_inference_steps=2):
                network(**sample(subject, step, 0))
    assert recipe.policy.recomputed == [0, 3]


def test_steps_of_the_scheduler_go_before_those_of_the_context(network, subject):
    recipe, scheduler = make_recipe(), ddim()
    with attach(SimpleNamespace(transformer=network, scheduler=scheduler), recipe), torch.no_grad():
        recipe.policy.watch(network)
        scheduler.set_timesteps(TOTAL)
        for step, timestep in enumerate(scheduler.timesteps):
            with network.cache_context("cond", step_index=0, num_inference_steps=2):
                network(**sample(subject, step, 0))
            scheduler.step(noise(1), timestep, noise(1))
    assert recipe.policy.recomputed == [0, 3]


@torch.no_grad()
def test_context_without_steps_recomputes_always(network, subject):
    recipe = make_recipe()
    with attach(network, recipe):
        recipe.policy.watch(network)
        with pytest.warns(UserWarning, match="begin_step"):
            in_both(network, sample(subject, 0, 0))
        in_both(network, sample(subject, 0, 0))
    assert recipe.policy.recomputed == [0, 1, 2, 3]


def in_both(network: Any, inputs: dict[str, Any]) -> None:
    for context in CONTEXTS:
        with network.cache_context(context):
            network(**inputs)


@torch.no_grad()
def test_context_within_another_ends_before_it(network, subject):
    """Also by an error."""
    with attach(network, make_recipe()) as session:
        session.begin_step(0, TOTAL, context="outer")
        with network.cache_context("middle"):
            with pytest.raises(ZeroDivisionError):
                fail_inside(network, sample(subject, 0, 0))
            network(**sample(subject, 0, 0))
        network(**sample(subject, 0, 0))
        labels = {name.partition(" ")[2] for name in session.plans()}
    assert labels == {"(outer)", "(middle)", "(inner)"}


def fail_inside(network: Any, inputs: dict[str, Any]) -> None:
    with network.cache_context("inner"):
        network(**inputs)
        raise ZeroDivisionError


@torch.no_grad()
def test_same_context_twice_in_a_step_is_two_calls(network, subject):
    with attach(network, make_recipe()) as session:
        session.begin_step(0, TOTAL)
        for _ in range(2):
            with network.cache_context("cond"):
                network(**sample(subject, 0, 0))
        assert {name.partition(" ")[2] for name in session.plans()} == {"(cond)", "(cond, call 2)"}


@torch.no_grad()
def test_calls_beyond_the_fourth_take_no_memory_of_their_own(network, subject):
    with attach(network, make_recipe()) as session:
        session.begin_step(0, TOTAL)
        for _ in range(MOST_CALLS + 3):
            network(**sample(subject, 0, 0))
        assert len(session.plans()) == MOST_CALLS * len(session.sites)


@torch.no_grad()
def test_another_number_of_samples_in_the_second_call_keeps_both_pairs(network, subject):
    """Guidance that leaves layers out calls the network once more, for half of the batch."""
    recipe = make_recipe()
    with attach(network, recipe) as session:
        recipe.policy.watch(network)
        for step in range(TOTAL):
            session.begin_step(step, TOTAL)
            network(**both(subject, step))
            network(**sample(subject, step, 0))
    assert recipe.policy.recomputed == [0, 1, 6, 7]


@pytest.mark.parametrize("name", WITH_CONTEXTS)
def test_detach_restores_the_network(name):
    subject, network = ARCHITECTURES[name], ARCHITECTURES[name].network()
    with network.cache_context("cond"):  # it leaves a registry of diffusers' own
        unpatched = subject.call(network)
    before = anatomy(network)
    with attach(network, make_recipe("keys")) as session:
        two_calls(by_fields, session, subject, network)
    assert anatomy(network) == before
    assert torch.equal(subject.call(network), unpatched)


@pytest.mark.parametrize("first", [0, 1])
def test_two_sessions_hear_of_one_networks_contexts(first, network, subject):
    before = set(vars(network))
    halves = find_sites(network)[:1], find_sites(network)[1:]
    sessions = [attach(network, make_recipe(), sites=half) for half in halves]
    for session in sessions:
        session.begin_step(0, TOTAL)
    with torch.no_grad(), network.cache_context("cond"):
        network(**sample(subject, 0, 0))
    assert all(name.endswith("(cond)") for session in sessions for name in session.plans())
    sessions[first].detach()
    with torch.no_grad(), network.cache_context("uncond"):
        network(**sample(subject, 0, 0))
    assert {name.partition(" ")[2] for name in sessions[1 - first].plans()} == {"(cond)", "(uncond)"}
    sessions[1 - first].detach()
    assert set(vars(network)) - before <= {"_diffusers_hook"}  # diffusers' own


def test_copy_of_an_attached_network_is_not_heard(network):
    with attach(network, make_recipe()) as session:
        twin = copy.deepcopy(network)
        with twin.cache_context("cond", step_index=0, num_inference_steps=TOTAL):
            assert "step=None" in repr(session)
    assert type(twin).cache_context.__get__(twin) == twin.cache_context


def test_wrapper_around_cache_context_is_there_afterwards(network):
    network.cache_context = wrapper = lambda name, **fields: nullcontext()
    attach(network, make_recipe()).detach()
    assert vars(network)["cache_context"] is wrapper


# Compiled.


@pytest.fixture
def compiler() -> Iterator[CompileCounter]:
    torch.compiler.reset()
    yield CompileCounter()
    torch.compiler.reset()


def whole(network: nn.Module, counter: CompileCounter) -> nn.Module:
    return torch.compile(network, fullgraph=True, backend=counter)


def blocks(network: nn.Module, counter: CompileCounter) -> nn.Module:
    network.compile_repeated_blocks(fullgraph=True, backend=counter)
    return network


def graphs_of_one_call(subject: Architecture, compile_network: Any, recipe: MergeRecipe) -> int:
    network, counter = subject.network(num_layers=1, num_single_layers=0), CompileCounter()
    with attach(network, recipe) as session, torch.no_grad():
        compiled = compile_network(network, counter)
        for step in range(TOTAL):
            session.begin_step(step, TOTAL)
            compiled(**sample(subject, step, 0), return_dict=False)
    return counter.frame_count


@pytest.mark.parametrize(
    ("compile_network", "driver"), [(whole, by_begin_step), (whole, by_fields), (blocks, by_order)]
)
def test_contexts_take_no_graph_of_their_own(compile_network, driver, subject, compiler):
    network, recipe = subject.network(num_layers=1, num_single_layers=0), make_recipe()
    graphs = graphs_of_one_call(subject, compile_network, recipe)
    with attach(network, recipe) as session:
        eager = two_calls(driver, session, subject, network)
    with attach(network, recipe) as session:
        compiled = two_calls(driver, session, subject, compile_network(network, compiler))
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
    assert 2 <= compiler.frame_count <= graphs
