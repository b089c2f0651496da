"""Run contenders against each other, eager or compiled, and compare what they took."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any

import torch

from catome_bench.comparing import Row, compare, describe, mean_steps
from catome_bench.compiling import Backend, compile_in_mode, count_breaks, count_skips
from catome_bench.contenders import ALWAYS, Contender, Entrant
from catome_bench.timing import Subject, Timing, interleave


class Runner:
    """A contender in a mode: warmed up, called, and its graphs counted."""

    def __init__(self, contender: Contender, mode: str) -> None:
        self.contender, self.mode, self.note = contender, mode, ""
        self.breaks = self.skips = self.graphs = 0
        try:
            self._warm(fullgraph=True)
        except Exception as error:
            if mode == "eager":
                raise
            self.note = f"no full graph: {describe(error)}"
            self._warm(fullgraph=False)

    def subjects(self) -> dict[str, Subject]:
        """What is timed, by phase."""

        def prepared(bring_about: Callable[[], object]) -> Callable[[], object]:
            return lambda: (bring_about(), torch.compiler.cudagraph_mark_step_begin())

        run = self.run
        return {phase: Subject(run, prepared(prepare)) for phase, prepare in self.contender.phases.items()}

    def run(self) -> object:
        """One call."""
        return self.call(*self.contender.inputs)

    def row(self, subject: str, phase: str, timing: Timing | Exception) -> Row:
        """What became of it."""
        row = Row(subject, phase, self.mode, None, self.graphs, self.breaks, note=self.note)
        row.recompiles, row.skips = self.backend.graphs - self.graphs, self.skips
        if isinstance(timing, Exception):
            row.note = describe(timing)
        else:
            row.timing = timing
        return row

    def _warm(self, fullgraph: bool) -> None:
        self._call_once()
        # CUDA graphs need one call to warm up and one to record.
        calls = 3 if self.mode == "cuda graphs" else 1
        self.backend = Backend(self.mode)
        breaks, skips = count_breaks(), count_skips()
        self.call = compile_in_mode(self.contender.module, self.mode, self.backend, fullgraph)
        for subject in self.subjects().values():
            for _ in range(calls):
                subject.prepare()
                subject.run()
        self.graphs, self.breaks = self.backend.graphs, count_breaks() - breaks
        self.skips = count_skips() - skips

    def _call_once(self) -> None:
        """Without compilation, where a cache should get its memory."""
        if self.contender.phases is not ALWAYS:
            next(iter(self.contender.phases.values()))()
            self.contender.module(*self.contender.inputs)


def race(
    entrants: Mapping[str, Entrant],
    mode: str,
    *,
    repeats: int,
    device: str,
    check: Callable[[str, Any], float] | None = None,
) -> list[Row]:
    """Time every phase of every contender, interleaved; whoever fails gets a row that says why.

    Everybody is built before anybody is compiled: attaching and detaching throw away what was compiled.

    Args:
        entrants: By name; "unpatched" is what the others are compared with.
        mode: One of `compiling.MODES`.
        repeats: Timed rounds.
        device: Where they run.
        check: From a name and a result to its error.
    """
    with ExitStack() as stack, torch.no_grad(), torch._dynamo.config.patch(recompile_limit=1024):
        rows: list[Row] = []
        contenders = _attempt_all(entrants, lambda entrant: entrant(stack), mode, rows)
        runners = _attempt_all(contenders, lambda contender: Runner(contender, mode), mode, rows)
        subjects = {(name, phase): subject for name in runners for phase, subject in runners[name].subjects().items()}
        timings = interleave(subjects, repeats=repeats, device=device)
        rows += [runners[name].row(name, phase, timing) for (name, phase), timing in timings.items()]
        if check is not None:
            for row in rows:
                row.error = check(row.subject, runners[row.subject].run()) if row.timing else None
    rows += mean_steps(rows)
    order = list(entrants)
    rows.sort(key=lambda row: order.index(row.subject))
    return compare(rows, {name: contender.free for name, contender in contenders.items() if contender.free})


def _attempt_all(
    given: Mapping[str, Any], action: Callable[[Any], Any], mode: str, rows: list[Row]
) -> Mapping[str, Any]:
    done = {}
    for name, value in given.items():
        try:
            done[name] = action(value)
        except Exception as error:
            rows.append(Row(name, "-", mode, note=describe(error)))
    return MappingProxyType(done)
