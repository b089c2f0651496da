"""Pass the scheduler's steps on to ca-tome's blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.models.attention import BasicTransformerBlock

from catome_adapters.steps.scheduler import SchedulerObserver


class PeerSteps:
    """Sets the step number of ca-tome's blocks, which counts from 1."""

    def __init__(self, blocks: list[BasicTransformerBlock]) -> None:
        self.blocks = blocks
        self.begin_step(0, 1)

    def begin_step(self, step: int, total: int) -> None:
        """Make `step`, counted from 0, the next step."""
        for block in self.blocks:
            # Not a submodule or a parameter, so an ordinary attribute.
            object.__setattr__(block, "inference_step", step + 1)

    @contextmanager
    def observing(self, scheduler: Any | None) -> Iterator[None]:
        """Take the steps from a scheduler while the context lasts; None: only from `begin_step`."""
        observer = None if scheduler is None else SchedulerObserver.subscribe(scheduler, self)
        try:
            yield
        finally:
            if observer is not None:
                observer.unsubscribe(self)

    def on_run(self, total: int) -> None:
        """Called by the observer of the scheduler when a run begins."""
        self.begin_step(0, total)

    def on_start(self, step: int, total: int) -> None:
        """Called by the observer of the scheduler when a run begins at a later step."""
        self.begin_step(step, total)

    def on_step_end(self, step: int, total: int) -> None:
        """Called by the observer of the scheduler when a step is done."""
        self.begin_step(step + 1, total)
