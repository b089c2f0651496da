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


class _Heard:
    """A method of one scheduler, with its signature, that the clock hears of; a copy of the scheduler is not heard."""

    def __init__(self, scheduler: Any, name: str, after: Callable[..., None]) -> None:
        self.scheduler, self.name, self.after = scheduler, name, after
        self.method = getattr(scheduler, name)
        functools.update_wrapper(self, self.method)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self.method(*args, **kwargs)
        self.after(*args, **kwargs)
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        twin = memo[id(self.scheduler)]
        return getattr(type(twin), self.name).__get__(twin)


class SchedulerClock:
    """Hears `set_timesteps` and `step` of one scheduler instance, through instance attributes that `stop` removes.

    Their signatures, which pipelines inspect, stay. Several listeners may share a scheduler.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler, self.count = scheduler, 0
        self.listeners: list[Listener] = []
        heard = {
            "set_timesteps": _Heard(scheduler, "set_timesteps", self._after_set_timesteps),
            "step": _Heard(scheduler, "step", self._after_step),
            "catome_clock": self,
        }
        self.before = {name: value for name, value in vars(scheduler).items() if name in heard}
        vars(scheduler).update(heard)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of the scheduler has no clock."""

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
            vars(self.scheduler).update(self.before)

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
