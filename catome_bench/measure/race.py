"""Run contenders against each other, eager or compiled, and compare their times."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, TypeVar

import torch

from catome_bench.measure.contender import ALWAYS, Contender, MakeContender
from catome_bench.measure.modes import CountingBackend, compile_in_mode, count_breaks, count_skips
from catome_bench.measure.rows import Row, add_speedups, describe, mean_steps
from catome_bench.measure.timing import Subject, Timing, interleave

Given = TypeVar("Given")
Made = TypeVar("Made")


class Runner:
    """A contender in one mode: compiles and warms it up, calls it, and counts its graphs."""

    def __init__(self, contender: Contender, mode: str) -> None:
        self.contender, self.mode, self.note = contender, mode, ""
        self.breaks = self.skips = self.graphs = 0
        try:
            self._warm_up(fullgraph=True)
        except Exception as error:
            if mode == "eager":
                raise
            self.note = f"no full graph: {describe(error)}"
            self._warm_up(fullgraph=False)

    def subjects(self) -> dict[str, Subject]:
        """The calls to time, by phase."""
        return {phase: self._subject(begin) for phase, begin in self.contender.phases.items()}

    def run(self) -> object:
        """Call it once."""
        return self.call(*self.contender.inputs)

    def row(self, subject: str, phase: str, timing: Timing | Exception) -> Row:
        """The row of this contender, with its timing or the error it raised."""
        row = Row(subject, phase, self.mode, None, self.graphs, self.breaks, note=self.note)
        row.recompiles, row.skips = self.backend.graphs - self.graphs, self.skips
        if isinstance(timing, Exception):
            row.note = describe(timing)
        else:
            row.timing = timing
        return row

    def _subject(self, begin: Callable[[], object]) -> Subject:
        def prepare() -> None:
            begin()
            torch.compiler.cudagraph_mark_step_begin()

        return Subject(self.run, prepare)

    def _warm_up(self, fullgraph: bool) -> None:
        self._call_uncompiled()
        # CUDA graphs need one call to warm up and one to record.
        calls = 3 if self.mode == "cuda graphs" else 1
        self.backend = CountingBackend(self.mode)
        breaks, skips = count_breaks(), count_skips()
        self.call = compile_in_mode(self.contender.module, self.mode, self.backend, fullgraph)
        for subject in self.subjects().values():
            for _ in range(calls):
                subject.prepare()
                subject.run()
        self.graphs, self.breaks = self.backend.graphs, count_breaks() - breaks
        self.skips = count_skips() - skips

    def _call_uncompiled(self) -> None:
        """Let a cache allocate its memory outside the graph."""
        if self.contender.phases is not ALWAYS:
            next(iter(self.contender.phases.values()))()
            self.contender.module(*self.contender.inputs)


def race(
    contenders: Mapping[str, MakeContender],
    mode: str,
    *,
    repeats: int,
    device: str,
    check: Callable[[str, Any], float] | None = None,
) -> list[Row]:
    """Time every phase of every contender, interleaved; a contender that fails gets a row with the reason.

    All contenders are built before any is compiled, because attaching and detaching discard compiled code.

    Args:
        contenders: By name; the others are compared with "unpatched".
        mode: One of `modes.MODES`.
        repeats: Timed rounds.
        device: Where they run.
        check: Computes the error of a result, given the contender's name and the result.
    """
    with ExitStack() as stack, torch.no_grad(), torch._dynamo.config.patch(recompile_limit=1024):
        rows: list[Row] = []
        made = _try_all(contenders, lambda make: make(stack), mode, rows)
        runners = _try_all(made, lambda contender: Runner(contender, mode), mode, rows)
        subjects = {(name, phase): subject for name in runners for phase, subject in runners[name].subjects().items()}
        timings = interleave(subjects, repeats=repeats, device=device)
        rows += [runners[name].row(name, phase, timing) for (name, phase), timing in timings.items()]
        if check is not None:
            for row in rows:
                row.error = check(row.subject, runners[row.subject].run()) if row.timing else None
    rows += mean_steps(rows)
    order = list(contenders)
    rows.sort(key=lambda row: order.index(row.subject))
    return add_speedups(rows, {name: contender.free for name, contender in made.items() if contender.free})


def _try_all(
    given: Mapping[str, Given], action: Callable[[Given], Made], mode: str, rows: list[Row]
) -> dict[str, Made]:
    """The results of `action` by name; a failure becomes a row instead."""
    done: dict[str, Made] = {}
    for name, value in given.items():
        try:
            done[name] = action(value)
        except Exception as error:
            rows.append(Row(name, "-", mode, note=describe(error)))
    return done
