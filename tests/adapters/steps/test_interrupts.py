"""An interrupt at any moment leaves nothing open: neither for the detached model nor for the next run."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from types import FrameType
from typing import Any

import pytest
import torch
from torch.overrides import _get_current_function_mode_stack

from catome_adapters import attach
from catome_adapters.prediction.worth import Worth
from catome_core import InterceptAttention
from running import SCOPES, make_recipe, progressive_recipe
from tiers import tiered
from zoo.transformers import ARCHITECTURES
from zoo.vits import VITS

pytestmark = pytest.mark.usefixtures("without_gradients")

MOMENTS = 15
OURS = ("/catome_core/", "/catome_adapters/")
CASES = [(name, scope) for name in ("DiT", "Flux", "SD3", "Wan") for scope in SCOPES]


class Clock:
    """Raises KeyboardInterrupt at the line of our code with this number; None: only counts the lines."""

    def __init__(self, moment: int | None) -> None:
        self.moment, self.lines = moment, 0

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if not any(part in frame.f_code.co_filename for part in OURS):
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.moment:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self.trace


@contextmanager
def interrupted(moment: int | None) -> Iterator[Clock]:
    clock = Clock(moment)
    before = sys.gettrace()
    sys.settrace(clock.trace)
    try:
        yield clock
    finally:
        sys.settrace(before)


def moments(lines: int) -> list[int]:
    return sorted(Random(0).sample(range(1, lines), MOMENTS))


@pytest.mark.parametrize(("name", "scope"), tiered(CASES, CASES[::4]))
def test_an_interrupt_leaves_nothing_behind(name, scope):
    model, recipe = ARCHITECTURES[name], make_recipe(scope)
    network = model.network()
    unmerged = model.call(network)
    with attach(network, recipe) as session:
        session.begin_step(0, 6)
        with interrupted(None) as clock:
            merged = model.call(network)
    for moment in moments(clock.lines):
        with attach(network, recipe) as session:
            session.begin_step(0, 6)
            with pytest.raises(KeyboardInterrupt), interrupted(moment):
                model.call(network)
            assert _get_current_function_mode_stack() == []
            session.begin_step(0, 6)
            assert torch.equal(model.call(network), merged)
        assert torch.equal(model.call(network), unmerged)


def test_an_interrupt_of_progressive_merging_leaves_nothing_behind():
    model, recipe = VITS["DINOv3"], progressive_recipe(0.4)
    network = model.network()
    unmerged = model.call(network)
    with attach(network, recipe):
        merged = model.call(network)
        # Later calls allocate nothing, so they are shorter.
        with interrupted(None) as clock:
            model.call(network)
        for moment in moments(clock.lines):
            with pytest.raises(KeyboardInterrupt), interrupted(moment):
                model.call(network)
            assert _get_current_function_mode_stack() == []
            assert torch.equal(model.call(network), merged)
    assert torch.equal(model.call(network), unmerged)


def test_an_interrupt_between_opening_a_mode_and_its_block_leaves_it_closed(monkeypatch):
    """`with` leaves the mode open if the interrupt comes in `__enter__`, after the mode is on the stack."""
    network = ARCHITECTURES["Flux"].network()

    def enter(self: InterceptAttention) -> None:
        super(InterceptAttention, self).__enter__()
        raise KeyboardInterrupt

    with attach(network, make_recipe("keys")) as session:
        session.begin_step(0, 6)
        monkeypatch.setattr(InterceptAttention, "__enter__", enter)
        with pytest.raises(KeyboardInterrupt):
            ARCHITECTURES["Flux"].call(network)
    assert _get_current_function_mode_stack() == []


@pytest.mark.filterwarnings("ignore:nothing merged in this run of step 5")
def test_keys_of_an_interrupted_call_reach_no_other():
    """Keys that are projected from anchors, in a step that does not merge."""
    model = ARCHITECTURES["DiT"]
    network, recipe = model.network(), make_recipe("keys", during=(0.0, 0.5))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with attach(network, recipe) as session:
        session.begin_step(5, 6)
        whole = model.call(network)
        handle = network.transformer_blocks[0].attn1.to_v.register_forward_pre_hook(interrupt)
        session.begin_step(0, 6)
        with pytest.raises(KeyboardInterrupt):
            model.call(network)
        handle.remove()
        session.begin_step(5, 6)
        assert torch.equal(model.call(network), whole)


@pytest.mark.filterwarnings("ignore:nothing merged in this run")
def test_an_interrupted_run_that_began_settled_leaves_nothing_behind(monkeypatch):
    """Small calls lose, and the session takes part in large ones alone."""
    monkeypatch.setattr(Worth, "at_size", lambda self, weights, key, total: key.batch > 2)
    model, recipe = ARCHITECTURES["DiT"], make_recipe("keys", levels="top")
    network = model.network()
    unmerged = model.call(network)

    def run(session, **options) -> list[torch.Tensor]:
        outputs = []
        for step in range(2):
            session.begin_step(step, 2)
            outputs.append(model.call(network, **options))
        return outputs

    with attach(network, recipe) as session:
        merged = run(session, batch=3)
    with attach(network, recipe) as session:
        run(session)
        with interrupted(None) as clock:
            run(session)
        for moment in moments(clock.lines):
            run(session)
            with pytest.raises(KeyboardInterrupt), interrupted(moment):
                run(session)
            assert all(map(torch.equal, run(session, batch=3), merged))
            with pytest.raises(KeyboardInterrupt), interrupted(moment):
                run(session)
            assert all(torch.equal(output, unmerged) for output in run(session))
            assert {row.slots == row.tokens for row in session.summary().rows} == {True}
