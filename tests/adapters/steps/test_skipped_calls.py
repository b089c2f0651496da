"""Steps without a call of the network, steps with many, and looking at a run while it runs."""

import threading
import time

import pytest
import torch

from catome_adapters import attach
from catome_adapters.hooks.pairs import MAX_CALLS_PER_STEP
from running import TOTAL, make_recipe
from zoo.transformers import ARCHITECTURES

pytestmark = pytest.mark.usefixtures("without_gradients")
MODEL = ARCHITECTURES["DiT"]


@pytest.mark.parametrize(
    ("skipped", "checkpoints"), [({3}, (0, 4)), ({0, 3}, (1, 4)), ({3, 4}, (0, 5)), (set(), (0, 3))]
)
def test_a_checkpoint_in_which_nothing_ran_stays_due(skipped, checkpoints):
    network = MODEL.network()
    with attach(network, make_recipe()) as session:
        for step in range(TOTAL):
            session.begin_step(step, TOTAL)
            if step not in skipped:
                MODEL.call(network, seed=step)
        assert session.summary().checkpoints == checkpoints


def test_calls_beyond_the_counted_ones_recompute():
    network, views = MODEL.network(), range(MAX_CALLS_PER_STEP + 3)
    with attach(network, make_recipe()) as session:
        session.begin_step(0, TOTAL)
        with pytest.warns(UserWarning, match=rf"more than {MAX_CALLS_PER_STEP} times in a step.*context="):
            first = [MODEL.call(network, seed=view) for view in views]
        session.begin_step(1, TOTAL)
        again = [MODEL.call(network, seed=view) for view in views]
    assert all(map(torch.equal, first, again))


def test_looking_at_a_run_between_two_blocks_changes_nothing():
    network = MODEL.network()
    with attach(network, make_recipe("block")) as session:
        session.begin_step(0, TOTAL)
        expected = MODEL.call(network)
        session.begin_step(1, TOTAL)
        handle = network.transformer_blocks[0].attn1.to_q.register_forward_pre_hook(
            lambda *_: session.summary() and None
        )
        assert torch.equal(MODEL.call(network), expected)
        handle.remove()
        assert [row.step for row in session.summary().rows] == [0, 0, 1, 1]


def test_looking_at_a_run_from_another_thread_changes_nothing():
    network, done = MODEL.network(), []
    recipe = make_recipe(capacity=None, threshold=0.3)

    def poll() -> None:
        while not done:
            session.summary()
            time.sleep(0.0005)

    with attach(network, recipe) as session:
        expected = [MODEL.call(network, seed=step) for step in run_steps(session)]
        poller = threading.Thread(target=poll)
        poller.start()
        try:
            for _ in range(10):
                polled = [MODEL.call(network, seed=step) for step in run_steps(session)]
                assert all(map(torch.equal, polled, expected))
        finally:
            done.append(True)
            poller.join()


def run_steps(session):
    for step in range(TOTAL):
        session.begin_step(step, TOTAL)
        yield step
