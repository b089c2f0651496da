"""Which denoising step it is, from the scheduler that the pipeline drives anyway."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor


class Listener(Protocol):
    """What is told of the steps."""

    def begin_run(self, total: int) -> None:
        """A run of `total` steps begins."""

    def end_step(self, step: int, total: int) -> None:
        """Step `step`, from 0, of `total` is done."""


class SchedulerClock:
    """Wraps `set_timesteps` and `step` of one scheduler instance, as instance attributes that `stop` removes.

    The wrappers keep the signatures, which pipelines inspect. Several listeners may share a scheduler.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler, self.listeners, self.count = scheduler, [], 0
        scheduler.set_timesteps = self._wrap(scheduler.set_timesteps, self._after_set_timesteps)
        scheduler.step = self._wrap(scheduler.step, self._after_step)
        scheduler.catome_clock = self

    @classmethod
    def listen(cls, scheduler: Any, listener: Listener) -> SchedulerClock:
        """Tell `listener` of this scheduler's steps from now on."""
        clock = vars(scheduler).get("catome_clock") or cls(scheduler)
        clock.listeners.append(listener)
        return clock

    def stop(self, listener: Listener) -> None:
        """Tell `listener` no more; the last to leave restores the scheduler."""
        self.listeners.remove(listener)
        if not self.listeners:
            del self.scheduler.set_timesteps, self.scheduler.step, self.scheduler.catome_clock

    def _wrap(self, method: Callable[..., Any], after: Callable[..., None]) -> Callable[..., Any]:
        @functools.wraps(method)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            after(*args, **kwargs)
            return result

        return wrapper

    def _after_set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        self.count = 0
        for listener in self.listeners:
            listener.begin_run(len(self.scheduler.timesteps))

    def _after_step(self, *args: Any, **kwargs: Any) -> None:
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        step = _index(self.scheduler.timesteps, timestep)
        self.count = (self.count if step is None else step) + 1
        for listener in self.listeners:
            listener.end_step(self.count - 1, len(self.scheduler.timesteps))


def _index(timesteps: Any, timestep: Any) -> int | None:
    """Position of a timestep in the run, without reading it from the device: a pipeline passes views of `timesteps`.

    So a run that begins in the middle (image to image) is where it says it is.
    """
    views = isinstance(timesteps, Tensor) and isinstance(timestep, Tensor)
    if not views or timestep.untyped_storage().data_ptr() != timesteps.untyped_storage().data_ptr():
        return None
    return int(timestep.storage_offset() - timesteps.storage_offset()) // timesteps.stride(0)
