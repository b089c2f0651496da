"""Which step of which run it is, and which of the step's calls."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from torch import nn

from catome_adapters.steps.observe import ObservedComponent

Call = tuple[object, str | None]
"""Who announced a call of the network, None for the caller of the session, and the name of its context."""


class StepSource(Protocol):
    """Notifies a tracker of steps."""

    @property
    def components(self) -> Sequence[ObservedComponent[Any]]:
        """The parts of the pipeline that it observes, and that may be replaced."""
        ...

    def update(self) -> None:
        """A component was replaced, perhaps: observe what is there now."""

    def remove(self) -> None:
        """Stop, and restore everything that was observed; safe to call again."""


class StepWork(Protocol):
    """What is done at the beginning and the end of runs and steps."""

    @property
    def ran(self) -> bool:
        """Whether anything has run in this step."""
        ...

    def begin_run(self) -> None:
        """A run begins: nothing of the run before counts."""

    def begin_step(self, step: int, total: int) -> None:
        """Step `step`, from 0, of `total` begins."""

    def finish_step(self, step: int | None, completed: bool) -> bool:
        """The step ends, after its last call if `completed`; whether anything ran."""
        ...

    def select_calls(self, context_of: Callable[[nn.Module], str | None]) -> None:
        """The next calls of each network belong to this context."""

    def reset(self) -> None:
        """The run is over, or forgotten."""


class StepTracker:
    """Brings together what several sources report about steps, and drives the work from it.

    The caller of `MergeSession.begin_step` is certain of the step, and goes before a scheduler. Cache contexts and
    guiders announce it, which counts where neither of the others does.

    Attributes:
        step: The present step, from 0; None if it is unknown.
        total: Number of steps of the run.
        context: The context that the caller named.
        has_scheduler: Whether a scheduler reports the steps.
        sources: What reports to this tracker.
        components: The parts of the pipeline that the sources observe.
    """

    def __init__(self, work: StepWork) -> None:
        self.work = work
        self.step: int | None = None
        self.total = 0
        self.context: str | None = None
        self.has_scheduler = False
        self.sources: list[StepSource] = []
        self.components: Sequence[ObservedComponent[Any]] = ()
        self._calls: set[Call] = set()
        self._inside: dict[nn.Module, str] = {}
        self._at_start = True

    def on_run(self, total: int, step: int = 0) -> None:
        """A run of `total` steps begins, at this one."""
        self.reset()
        self.work.begin_run()
        self._at_start = True
        self._begin(step, total)

    def on_start(self, step: int, total: int) -> None:
        """The run begins at this step, perhaps in the middle."""
        if self._at_start and self.step not in (None, step) and not self._is_from_caller:
            self._begin(step, total)

    def on_step_end(self, step: int, total: int) -> None:
        """A step is done."""
        if self._is_from_caller:
            return
        if self.step is None:
            # The session was attached, or reset, in the middle of the run.
            if step + 1 < total:
                self.on_run(total, step + 1)
            return
        # Cosmos ends every step twice, and calls no network in between.
        if step == self.step - 1 and not self.work.ran:
            return
        self.step = step
        self._finish(completed=True)
        if step + 1 < total:
            self._begin(step + 1, total)
        else:
            self.reset()

    def on_step(self, step: int, total: int, call: Call) -> None:
        """A call in this step comes next; the first one begins the step, and one that comes again a new run."""
        if (step, total) != (self.step, self.total) or not self._calls or call in self._calls:
            # A step that comes again may follow one that failed before its blocks ran.
            self._finish(completed=self.step is not None and step > self.step)
            if self.step is None or step <= self.step:
                self.on_run(total)
            if (step, total) != (self.step, self.total):
                self._begin(step, total)
            self._calls.clear()
        self._calls.add(call)
        announcer, context = call
        self.context = context if announcer is None else None
        self.work.select_calls(self.context_of)

    def on_announced_step(self, step: int, total: int, announcer: object, context: str | None = None) -> None:
        """The same from a source that gives way to a scheduler and to the caller."""
        if not self.has_scheduler and not self._is_from_caller:
            self.on_step(step, total, (announcer, context))

    @contextmanager
    def on_context(self, network: nn.Module, name: str, step: int | None, total: int | None) -> Generator[None]:
        """Until this ends, calls of this network belong to the context of this name."""
        outer = self._inside.copy()
        try:
            self._inside[network] = name
            if step is not None and total is not None:
                self.on_announced_step(step, total, network, name)
            self.work.select_calls(self.context_of)
            yield
        finally:
            self._inside = outer
            self.work.select_calls(self.context_of)

    def context_of(self, network: nn.Module) -> str | None:
        """A network's own context goes before the one that the caller named."""
        return self._inside.get(network, self.context)

    def finish(self) -> None:
        """End the present step, if one is open."""
        self._finish(completed=False)

    def reset(self) -> None:
        """The step is unknown until a source reports one."""
        self.step = self.context = None
        self._calls.clear()
        self.work.reset()
        self.work.select_calls(self.context_of)

    @property
    def _is_from_caller(self) -> bool:
        """Whether the caller of the session has said which step this is."""
        return any(announcer is None for announcer, _ in self._calls)

    def _begin(self, step: int, total: int) -> None:
        self.step, self.total = step, total
        self.work.begin_step(step, total)

    def _finish(self, completed: bool) -> None:
        if self.work.finish_step(self.step, completed):
            self._at_start = False
