"""Steps from the guiders of diffusers' modular pipelines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import nn

from catome_adapters.steps.observe import MethodObserver, ObservedComponent
from catome_adapters.steps.tracker import StepTracker


class GuiderSubscriber(Protocol):
    """Is notified of a guider's steps."""

    def on_announced_step(self, step: int, total: int, announcer: object) -> None:
        """Step `step`, from 0, of `total` comes next."""


class GuiderObserver(MethodObserver[GuiderSubscriber]):
    """Observes `set_state`, which a denoising loop calls before the network's calls of every step."""

    attribute = "catome_guider"
    required = ("set_state",)

    def _calls(self) -> Mapping[str, Callable[..., Any]]:
        return {"set_state": self._set_state}

    def _set_state(
        self, method: Callable[..., Any], step: int, num_inference_steps: int, *args: Any, **kwargs: Any
    ) -> Any:
        result = method(step, num_inference_steps, *args, **kwargs)
        for subscriber in self.subscribers:
            subscriber.on_announced_step(step, num_inference_steps, self.owner)
        return result


class GuiderSource:
    """Notifies the tracker of the steps of a pipeline's guider, also of one that replaces another."""

    def __init__(self, pipeline: Any, networks: Sequence[nn.Module], tracker: StepTracker) -> None:
        self.guider = ObservedComponent(pipeline, "guider", GuiderObserver, tracker)
        self.components = (self.guider,)

    def update(self) -> None:
        """Observe the guider that is there now."""
        self.guider.update()

    def remove(self) -> None:
        """Restore the guider."""
        self.guider.remove()
