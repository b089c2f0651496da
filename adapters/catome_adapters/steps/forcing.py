"""Steps of diffusion forcing, in which copies of the scheduler, one for each frame, make the steps."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from torch import nn

from catome_adapters.steps.context import ContextObserver
from catome_adapters.steps.observe import MethodObserver, ObservedComponent
from catome_adapters.steps.tracker import StepTracker


class MatrixSubscriber(Protocol):
    """Is notified of matrices of timesteps."""

    def on_matrix(self, total: int) -> None:
        """A run of `total` steps begins."""


class MatrixObserver(MethodObserver[MatrixSubscriber]):
    """Observes `generate_timestep_matrix` of a pipeline: a row of timesteps, one for each frame, is a step."""

    attribute = "catome_matrix"
    required = ("generate_timestep_matrix",)

    def _calls(self) -> Mapping[str, Callable[..., Any]]:
        return {"generate_timestep_matrix": self._generate}

    def _generate(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        matrix, *others = method(*args, **kwargs)
        for subscriber in self.subscribers:
            subscriber.on_matrix(len(matrix))
        return matrix, *others


class ForcingSource:
    """Notifies the tracker of the steps of a pipeline of SkyReels-V2 with diffusion forcing.

    A step ends where the network is called in a context that it was called in before ("cond", the next time). The last
    one ends after as many contexts as the others.
    """

    def __init__(self, pipeline: Any, networks: Sequence[nn.Module], tracker: StepTracker) -> None:
        self.tracker, self.step, self.total = tracker, 0, 0
        self.contexts: list[str] = []
        self.of_a_step: list[str] = []
        self.components: tuple[ObservedComponent[Any], ...] = ()
        self.observers: list[MethodObserver[Any]] = []
        if hasattr(pipeline, "generate_timestep_matrix"):
            self.observers.append(MatrixObserver.subscribe(pipeline, self))
            self.observers.extend(ContextObserver.subscribe(network, self) for network in networks)

    def on_matrix(self, total: int) -> None:
        """A run of `total` steps begins."""
        self.step, self.total = 0, total
        self.contexts, self.of_a_step = [], []
        self.tracker.on_run(total)

    @contextmanager
    def on_context(self, network: nn.Module, name: str, step: int | None, total: int | None) -> Generator[None]:
        """The network is called in the context of this name."""
        if self.step < self.total:
            if name in self.contexts:
                self._end_step()
            self.contexts.append(name)
        yield
        if self.step + 1 == self.total and self.contexts == self.of_a_step:
            self._end_step()

    def update(self) -> None:
        """Networks that replace others are not attached."""

    def remove(self) -> None:
        """Restore the pipeline and its networks; safe to call again."""
        while self.observers:
            self.observers.pop().unsubscribe(self)

    def _end_step(self) -> None:
        self.of_a_step, self.contexts = self.contexts, []
        self.tracker.on_step_end(self.step, self.total)
        self.step += 1
