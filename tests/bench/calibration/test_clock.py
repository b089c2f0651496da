"""Seconds of blocks, by a clock that is moved by hand."""

from itertools import count
from typing import Any

import pytest
import torch
from torch import nn

from catome_adapters import SiteStep, attach, find_sites
from catome_bench.calibration import clock
from catome_bench.calibration.candidates import candidates
from catome_bench.calibration.clock import by_kind, kinds_of_steps, seconds_by_call, timed_blocks
from probes import anatomy
from zoo.class_pipelines import tiny_shipped
from zoo.pipeline_parts import quiet

CPU = torch.device("cpu")


@pytest.fixture
def ticks(monkeypatch) -> None:
    """A clock that every reading moves on by a second."""
    seconds = count()
    monkeypatch.setattr(clock, "now", lambda device: float(next(seconds)))


@pytest.mark.usefixtures("ticks")
def test_every_call_of_every_block_is_timed_with_what_runs_inside_of_it():
    inner = nn.Linear(2, 2)
    outer = nn.Sequential(inner, inner)
    with timed_blocks([outer, inner], CPU) as calls:
        outer(torch.zeros(1, 2))
        inner(torch.zeros(1, 2))
    assert calls == [[5.0], [1.0, 1.0, 1.0]]
    outer(torch.zeros(1, 2))
    assert len(calls[0]) == 1


def test_hooks_of_merging_are_inside_and_all_are_gone_afterwards(monkeypatch):
    pipe = quiet(tiny_shipped())
    sites, before = find_sites(pipe), anatomy(pipe.unet)
    order: list[str] = []
    monkeypatch.setattr(clock, "now", lambda device: order.append("clock") or 0.0)
    with attach(pipe, candidates(None)["1/4 of the keys"], sites=sites[:1]):
        for register in (sites[0].block.register_forward_pre_hook, sites[0].block.register_forward_hook):
            register(lambda *_: order.append("merging"))
        with timed_blocks([sites[0].block], CPU):
            pipe(["cat"], size=16, num_inference_steps=1)
    assert order == ["clock", "merging", "merging", "clock"]
    for hooks in (sites[0].block._forward_pre_hooks, sites[0].block._forward_hooks):
        hooks.clear()
    assert anatomy(pipe.unet) == before


def test_the_clock_of_the_host_goes_on():
    assert clock.now(CPU) < clock.now(CPU)


def row(step: int, merged: float, checkpoint: bool, site: str = "a") -> SiteStep:
    return SiteStep(site, step, checkpoint, 16, 8, merged, merged, 0.5, 0)


def test_steps_are_unmerged_checkpoints_or_reuse():
    rows: list[Any] = [row(0, 0.5, True), row(0, 0.5, True, "b"), row(1, 0.5, False), row(1, 0.0, False, "b")]
    rows += [row(2, 0.0, False), row(3, 0.0, False), row(3, 0.5, True, "b")]
    assert kinds_of_steps(rows) == ["checkpoint", "reuse", "unmerged", "checkpoint"]


def test_calls_are_of_the_kind_of_their_step():
    kinds, seconds = ["checkpoint", "reuse", "unmerged"], [5.0, 6.0, 1.0, 2.0, 8.0, 9.0]
    assert by_kind(seconds, kinds) == {"checkpoint": [5.0, 6.0], "reuse": [1.0, 2.0], "unmerged": [8.0, 9.0]}
    assert by_kind(seconds, ["unmerged"]) == {"unmerged": seconds}


def test_the_blocks_of_a_call_are_added():
    assert seconds_by_call([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]]) == [111.0, 222.0]
