"""Steps from the scheduler that the pipeline drives anyway."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from catome_adapters.steps.observe import MethodObserver, ObservedComponent
from catome_adapters.steps.tracker import StepTracker


class SchedulerSubscriber(Protocol):
    """Is notified of a scheduler's run and steps."""

    def on_run(self, total: int) -> None:
        """A run of `total` steps begins."""

    def on_start(self, step: int, total: int) -> None:
        """The network is about to be called for step `step`, from 0, of `total`; not the first step, perhaps."""

    def on_step_end(self, step: int, total: int) -> None:
        """Step `step`, from 0, of `total` is done."""


class SchedulerObserver(MethodObserver[SchedulerSubscriber]):
    """Observes a scheduler's run (`set_timesteps`), its steps (`step`) and where the run begins.

    Image to image begins in the middle: `set_begin_index` says so where a scheduler has it, else the timestep that
    `scale_model_input` is given before every call of the network. Their signatures, which pipelines inspect, stay.
    """

    attribute = "catome_scheduler"
    required = ("set_timesteps", "step")

    def __init__(self, owner: Any) -> None:
        names = [*inspect.signature(owner.step).parameters]
        self.timestep_index = names.index("timestep") if "timestep" in names else 1
        self.count = _present_step(owner)
        super().__init__(owner)

    @property
    def total(self) -> int:
        """Number of steps of the run."""
        return len(self.owner.timesteps)

    def _calls(self) -> Mapping[str, Callable[..., Any]]:
        return {
            "set_timesteps": self._set_timesteps,
            "set_begin_index": self._set_begin_index,
            "scale_model_input": self._scale_model_input,
            "step": self._step,
        }

    def _set_timesteps(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        self.count = 0
        for subscriber in self.subscribers:
            subscriber.on_run(self.total)
        return result

    def _set_begin_index(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        self._start_at(self.owner.begin_index)
        return result

    def _scale_model_input(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._start_at(_position(self.owner.timesteps, _timestep(1, args, kwargs)))
        return method(*args, **kwargs)

    def _start_at(self, step: int | None) -> None:
        total = self.total
        if step is None or not 0 <= step < total:
            return
        self.count = step
        for subscriber in self.subscribers:
            subscriber.on_start(step, total)

    def _step(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        step = _position(self.owner.timesteps, _timestep(self.timestep_index, args, kwargs))
        self.count = (self.count if step is None else step) + 1
        for subscriber in self.subscribers:
            subscriber.on_step_end(self.count - 1, self.total)
        return result


class SchedulerSource:
    """Notifies the tracker of the steps of a pipeline's scheduler, also of one that replaces another during a run."""

    def __init__(self, pipeline: Any, networks: Sequence[nn.Module], tracker: StepTracker) -> None:
        self.tracker = tracker
        self.scheduler = ObservedComponent(pipeline, "scheduler", SchedulerObserver, tracker)
        self.components = (self.scheduler,)
        tracker.has_scheduler = self.scheduler.is_observed

    def update(self) -> None:
        """A new scheduler was given its timesteps while it was not observed."""
        replaced = self.scheduler.update()
        self.tracker.has_scheduler = self.scheduler.is_observed
        if replaced and self.scheduler.is_observed:
            total = len(self.scheduler.component.timesteps)
            self.tracker.on_run(total)
            # Image to image began in the middle before that.
            self.tracker.on_start(min(_present_step(self.scheduler.component), total - 1), total)

    def remove(self) -> None:
        """Restore the scheduler."""
        self.scheduler.remove()


def _present_step(scheduler: Any) -> int:
    """The step of a run that is under way, from 0, where the scheduler knows it."""
    known = (getattr(scheduler, name, None) for name in ("step_index", "begin_index"))
    return next((step for step in known if step is not None), 0)


def _timestep(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if "timestep" in kwargs:
        return kwargs["timestep"]
    return args[index] if index < len(args) else None


def _position(timesteps: Any, timestep: Any) -> int | None:
    """Position of a timestep in the run, without reading it from the device: a pipeline passes views of `timesteps`.

    So a run that begins in the middle (image to image) is where it says it is.
    """
    views = isinstance(timesteps, Tensor) and isinstance(timestep, Tensor)
    if not views or timestep.untyped_storage().data_ptr() != timesteps.untyped_storage().data_ptr():
        return None
    return int(timestep.storage_offset() - timesteps.storage_offset()) // timesteps.stride(0)
