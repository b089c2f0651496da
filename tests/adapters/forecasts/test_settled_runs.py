"""Runs whose calls are too small to gain: little is done after the first step, and everything once a call differs."""

import gc
import warnings
import weakref
from contextlib import contextmanager

import pytest
import torch
from diffusers import PyramidAttentionBroadcastConfig

from catome_adapters import attach, find_sites
from catome_adapters.hooks.settled import SettledRun
from catome_adapters.prediction.worth import Worth
from probes import Interrupted, Operations, calls_of_ours, failing
from running import TOTAL, assert_same, call, differing_steps, lattice_recipe, make_recipe, run
from stepping import counting_recipe
from tiers import tiered
from zoo.noise import noise
from zoo.transformers import ALL_ARCHITECTURES, ARCHITECTURES
from zoo.unet_pipelines import class_pipeline, draw
from zoo.unets import predict

pytestmark = [
    pytest.mark.usefixtures("without_gradients"),
    pytest.mark.filterwarnings("ignore:nothing merged in this run", "ignore:merging is predicted to"),
]

RECIPE = make_recipe("keys", levels="top")
LATTICE = lattice_recipe(levels="top", during=(0.3, 1.0))
MODEL = ARCHITECTURES["DiT"]
BROADCAST = PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500)


@pytest.fixture
def break_even(monkeypatch) -> None:
    """Calls with more than two samples gain, and all that are compiled; others lose."""
    monkeypatch.setattr(Worth, "at_size", lambda self, weights, key, total, compiled=False: compiled or key.batch > 2)


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
    assert rows == expected_rows


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
        for begins_settled in (False, True, True, False):
            seen.clear()
            if session.summary().rows and not begins_settled:
                pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
            assert_same(draw(pipe), alone)
            assert seen[0] is begins_settled and set(seen[1:]) == {True}
            assert len({row.step for row in session.summary().rows}) == len(seen)


# The second run of a session.


def a_run(network, session, total=TOTAL, **options):
    return torch.stack([call(MODEL, network, session, step, total=total, **options) for step in range(total)])


def a_run_of_another_batch(network, session):
    return a_run(network, session, batch=4)


def a_run_of_another_size(network, session):
    return a_run(network, session, size=MODEL.sizes[1])


def a_run_of_another_type(network, session):
    network.double()
    try:
        return a_run(network, session, hidden_states=MODEL.inputs()["hidden_states"].double())
    finally:
        network.float()


def a_run_of_another_length(network, session):
    return a_run(network, session, TOTAL + 2)


def a_run_with_gradients(network, session):
    with torch.enable_grad():
        return torch.stack([MODEL.predict(network).detach() for step in range(TOTAL) if not begin(session, step)])


def a_run_of_two_calls_a_step(network, session):
    return torch.stack([call(MODEL, network, session, step) + MODEL.call(network, seed=1) for step in range(TOTAL)])


def a_run_of_named_calls(network, session):
    return torch.stack([MODEL.call(network) for step in range(TOTAL) if not begin(session, step, context="cond")])


def a_run_from_the_middle(network, session):
    return torch.stack([call(MODEL, network, session, step, batch=4) for step in range(2, TOTAL)])


def a_run_of_growing_batches(network, session):
    return torch.cat([call(MODEL, network, session, step, batch=2 + step) for step in range(TOTAL)])


def a_run_after_a_reset(network, session):
    session.reset()
    return a_run(network, session)


def a_run_after_a_call_without_step(network, session):
    session.reset()
    with pytest.warns(UserWarning, match="the denoising step is unknown"):
        one = MODEL.call(network, batch=4)
    return torch.cat([one, *a_run(network, session)])


def a_run_after_an_interrupted_one(network, session):
    call(MODEL, network, session, 0)
    with failing(network.transformer_blocks[1]), pytest.raises(Interrupted):
        call(MODEL, network, session, 1)
    return a_run(network, session, batch=4)


def begin(session, step, **options):
    session.begin_step(step, TOTAL, **options)


BEGIN_SETTLED = [a_run, a_run_of_two_calls_a_step, a_run_of_growing_batches, a_run_after_an_interrupted_one]
BEGIN_ANEW = [a_run_of_another_batch, a_run_of_another_size, a_run_of_another_type, a_run_of_another_length]
BEGIN_ANEW += [a_run_with_gradients, a_run_of_named_calls, a_run_from_the_middle, a_run_after_a_reset]
BEGIN_ANEW += [a_run_after_a_call_without_step]
RECIPES = {"keys": RECIPE, "random": make_recipe(levels="top", destination="random"), "lattice": LATTICE}


def said_by(session):
    """Everything but times."""
    return session.summary()._replace(seconds=None), session.report(), [*session.plans()], session.step


@pytest.mark.parametrize("second", tiered(BEGIN_SETTLED + BEGIN_ANEW, [*BEGIN_SETTLED[::2], *BEGIN_ANEW[::2]]))
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_second_run_is_as_if_nothing_had_been_settled(recipe, second, break_even, monkeypatch):
    network, settled, said = MODEL.network(), [], []

    def note(session):
        settled.append(is_settled(session))
        said.append(said_by(session))

    def outcome():
        settled.clear()
        said.clear()
        with attach(network, RECIPES[recipe]) as session:
            handle = network.register_forward_hook(lambda *_: note(session))
            outputs = [a_run(network, session), second(network, session), a_run(network, session)]
            handle.remove()
            return outputs, [*said, said_by(session)]

    ours = outcome()
    assert settled[TOTAL] == (second in BEGIN_SETTLED)
    with never_settled(monkeypatch):
        theirs = outcome()
    assert not any(settled)
    assert_same(ours[0], theirs[0])
    assert ours[1] == theirs[1]


def test_cells_that_gain_at_first_gain_in_the_next_run_too():
    """The second run would begin as the first one ended, with cells of 2 x 4, whose near field covers the grid."""
    model = ALL_ARCHITECTURES["AuraFlow"]
    network = model.network()
    with attach(network, "fast") as session:
        first, second = (run(model, network, session) for _ in range(2))
    assert differing_steps(first, run(model, network)) == [2]
    assert_same(second, first)


def test_calls_between_two_pictures_leave_no_trace_in_the_second(break_even, monkeypatch):
    pipe = class_pipeline()

    def outcome():
        with attach(pipe, counting_recipe(levels="top")) as session, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            drawn = draw(pipe)
            between = predict(pipe.unet, noise(4, 12, 12, 20), encoder_hidden_states=noise(4, 3, 12))
            return [drawn, between, draw(pipe)], said_by(session)

    ours = outcome()
    with never_settled(monkeypatch):
        theirs = outcome()
    assert_same(ours[0], theirs[0])
    assert ours[1] == theirs[1]


def test_every_run_warns_as_often_as_if_nothing_had_been_settled(break_even, monkeypatch):
    network = MODEL.network()

    def warned():
        with warnings.catch_warnings(record=True) as caught, attach(network, RECIPE) as session:
            warnings.simplefilter("always")
            for batch in (2, 2, 4, 2, 2):
                a_run(network, session, batch=batch)
        return [str(one.message) for one in caught]

    ours = warned()
    with never_settled(monkeypatch):
        assert warned() == ours
    assert len(ours) == 1


def test_what_cannot_work_is_refused_before_a_run_that_would_begin_settled(break_even):
    model = ARCHITECTURES["Flux"]
    network = model.network()
    alone = model.call(network)
    with attach(network, make_recipe(levels="top")) as session:
        for step in range(TOTAL):
            assert_same(call(model, network, session, step), alone)
        network.enable_cache(BROADCAST)
        with pytest.raises(ValueError, match="call disable_cache"):
            session.begin_step(0, TOTAL)
        network.disable_cache()
        assert_same(call(model, network, session), alone)


def test_no_tensor_of_a_run_outlives_the_next_one(break_even):
    network = MODEL.network()
    with attach(network, RECIPE) as session:
        a_run(network, session)
        kept = weakref.ref(session._runs.each[0].log.records[-1].plans[0].unmergeable)
        a_run(network, session, TOTAL + 1, batch=4)
        gc.collect()
        assert kept() is None


def test_a_step_in_which_nothing_is_called_ends_it(break_even):
    """Of another pipeline with the same scheduler, or of compiled code that is not seen."""
    pipe = class_pipeline()
    with attach(pipe, counting_recipe(levels="top")) as session:
        draw(pipe)
        pipe.scheduler.set_timesteps(5)
        assert is_settled(session)
        pipe.scheduler.step(noise(1, 4, 8, 8), pipe.scheduler.timesteps[0], noise(1, 4, 8, 8))
        assert not is_settled(session)
