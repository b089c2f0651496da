"""Runs whose calls are too small to gain: little is done after the first step, and everything once a call differs."""

from contextlib import contextmanager

import pytest
import torch

from catome_adapters import attach, find_sites
from catome_adapters.hooks.settled import SettledRun
from catome_adapters.prediction.worth import Worth
from probes import Operations, calls_of_ours
from running import TOTAL, assert_same, call, make_recipe
from stepping import counting_recipe
from zoo.transformers import ARCHITECTURES
from zoo.unet_pipelines import class_pipeline, draw

pytestmark = [
    pytest.mark.usefixtures("without_gradients"),
    pytest.mark.filterwarnings("ignore:nothing merged in this run", "ignore:merging is predicted to"),
]

RECIPE = make_recipe("keys", levels="top")
MODEL = ARCHITECTURES["DiT"]


@pytest.fixture
def break_even(monkeypatch) -> None:
    """Calls with more than two samples gain, others lose."""
    monkeypatch.setattr(Worth, "at_size", lambda self, weights, key, total: key.batch > 2)


@contextmanager
def never_settled(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(SettledRun, "may_begin", False)
        yield


def is_settled(session) -> bool:
    return session._runs.each[0].settled.plans is not None


def another_size(network, session):
    return call(MODEL, network, session, 3, batch=4)


def another_call(network, session):
    return torch.stack([call(MODEL, network, session, 3), MODEL.call(network, batch=2, seed=5)])


def another_context(network, session):
    session.begin_step(3, TOTAL, context="cond")
    one = MODEL.call(network)
    session.begin_step(3, TOTAL, context="uncond")
    return torch.stack([one, MODEL.call(network, seed=1)])


def another_run(network, session):
    return torch.cat([call(MODEL, network, session, step, batch=4) for step in range(2)])


def with_gradients(network, session):
    with torch.enable_grad():
        return call(MODEL, network, session, 3).detach()


CHANGES = [another_size, another_call, another_context, another_run, with_gradients]


@pytest.mark.parametrize("change", CHANGES)
def test_a_call_that_differs_is_as_if_nothing_had_been_settled(change, break_even, monkeypatch):
    network = MODEL.network()

    def outcome():
        with attach(network, RECIPE) as session:
            calls = [call(MODEL, network, session, step) for step in range(3)]
            settled = is_settled(session)
            calls += [change(network, session), call(MODEL, network, session, 4, batch=4)]
            calls += [call(MODEL, network, session, 5, batch=4)]
            return settled, calls, session.summary().rows

    settled, calls, rows = outcome()
    with never_settled(monkeypatch):
        unsettled, expected, expected_rows = outcome()
    assert settled and not unsettled
    assert_same(calls, expected)
    assert {row for row in rows if row.slots < row.tokens} == {row for row in expected_rows if row.slots < row.tokens}
    assert {row.step for row in rows} == {row.step for row in expected_rows}


def test_a_settled_run_is_recorded_and_explained_as_any_other(break_even, monkeypatch):
    network = MODEL.network()

    def summary():
        with attach(network, RECIPE) as session:
            texts = []
            for step in range(TOTAL):
                call(MODEL, network, session, step)
                texts.append(session.summary()._replace(seconds=None, timed_steps=0))
            return texts, session.report()

    settled = summary()
    with never_settled(monkeypatch):
        assert summary() == settled
    assert len(settled[0][-1].rows) == TOTAL * len(MODEL.network().transformer_blocks)


def test_a_settled_step_costs_next_to_nothing(break_even):
    """Between two steps as much for all sites as for one, and in each block a few calls of our functions."""
    network = MODEL.network()
    plain = Operations.of(lambda: MODEL.call(network))
    sites = find_sites(network)
    blocks, boundaries = [], []
    for attached in (sites[:1], sites):
        with attach(network, RECIPE, sites=attached) as session:
            for step in range(TOTAL - 2):
                call(MODEL, network, session, step)
            assert is_settled(session)
            assert not Operations.of(lambda: session.begin_step(TOTAL - 2, TOTAL))
            assert Operations.of(lambda: MODEL.call(network)) == plain
            boundaries.append(len(calls_of_ours(lambda: session.begin_step(TOTAL - 1, TOTAL))))
            blocks.append(len(calls_of_ours(lambda: MODEL.call(network))))
    assert boundaries[0] == boundaries[1]
    assert blocks[1] - blocks[0] <= 7 * (len(sites) - 1)


def test_pictures_of_a_pipeline_are_settled_from_the_second_step_on(break_even):
    pipe = class_pipeline()
    alone = draw(pipe)
    with attach(pipe, counting_recipe(levels="top")) as session:
        seen = []
        pipe.unet.register_forward_hook(lambda *_: seen.append(is_settled(session)))
        assert_same(draw(pipe), alone)
        assert seen[0] is False and set(seen[1:]) == {True}
        seen.clear()
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        assert_same(draw(pipe), alone)
        assert len({row.step for row in session.summary().rows}) == len(seen)
