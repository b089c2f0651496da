"""Which denoising step it is, from the scheduler that the pipeline drives anyway."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from catome_adapters.hearing import Hearing


class StepListener(Protocol):
    """What is told of the steps."""

    def begin_run(self, total: int) -> None:
        """A run of `total` steps begins."""

    def begin_at(self, step: int, total: int) -> None:
        """The network is about to be called for step `step`, from 0, of `total`: not the first one, perhaps."""

    def end_step(self, step: int, total: int) -> None:
        """Step `step`, from 0, of `total` is done."""


class SchedulerClock(Hearing[StepListener]):
    """Hears of a scheduler's run (`set_timesteps`), its steps (`step`) and where it begins.

    Image to image begins in the middle: `set_begin_index` says so where a scheduler has it, else the timestep that
    `scale_model_input` is given before every call of the network. Their signatures, which pipelines inspect, stay.
    """

    mark = "catome_clock"

    def __init__(self, owner: Any) -> None:
        names = [*inspect.signature(owner.step).parameters]
        self.place = names.index("timestep") if "timestep" in names else 1
        self.count = 0
        super().__init__(owner)

    @property
    def total(self) -> int:
        """Steps of the run."""
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
        for listener in self.listeners:
            listener.begin_run(self.total)
        return result

    def _set_begin_index(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        self._begin_at(self.owner.begin_index)
        return result

    def _scale_model_input(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._begin_at(_index(self.owner.timesteps, _argument(1, args, kwargs)))
        return method(*args, **kwargs)

    def _begin_at(self, step: int | None) -> None:
        if step is None or not 0 <= step < self.total:
            return
        self.count = step
        for listener in self.listeners:
            listener.begin_at(step, self.total)

    def _step(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        step = _index(self.owner.timesteps, _argument(self.place, args, kwargs))
        self.count = (self.count if step is None else step) + 1
        for listener in self.listeners:
            listener.end_step(self.count - 1, self.total)
        return result


def _argument(place: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return kwargs["timestep"] if "timestep" in kwargs else args[place] if place < len(args) else None


def _index(timesteps: Any, timestep: Any) -> int | None:
    """Position of a timestep in the run, without reading it from the device: a pipeline passes views of `timesteps`.

    So a run that begins in the middle (image to image) is where it says it is.
    """
    views = isinstance(timesteps, Tensor) and isinstance(timestep, Tensor)
    if not views or timestep.untyped_storage().data_ptr() != timesteps.untyped_storage().data_ptr():
        return None
    return int(timestep.storage_offset() - timesteps.storage_offset()) // timesteps.stride(0)
