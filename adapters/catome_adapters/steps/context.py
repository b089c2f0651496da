"""Steps and calls from the cache contexts that diffusers' pipelines open around calls of a network."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

from torch import nn

from catome_adapters.steps.observe import MethodObserver, ObservedComponent
from catome_adapters.steps.tracker import StepTracker


class ContextSubscriber(Protocol):
    """Is notified of cache contexts."""

    def on_context(
        self, network: nn.Module, name: str, step: int | None, total: int | None
    ) -> AbstractContextManager[None]:
        """Until this ends, calls of the network belong to the context of this name, in step `step` of `total`."""
        ...


class ContextObserver(MethodObserver[ContextSubscriber]):
    """Observes `cache_context` of one network, which pipelines open around "cond" and around "uncond"."""

    attribute = "catome_contexts"
    required = ("cache_context",)

    def _calls(self) -> Mapping[str, Callable[..., Any]]:
        return {"cache_context": self._cache_context}

    @contextmanager
    def _cache_context(self, method: Callable[..., Any], name: str, **fields: Any) -> Generator[None]:
        step, total = fields.get("step_index"), fields.get("num_inference_steps")
        with ExitStack() as stack:
            stack.enter_context(method(name, **fields))
            for subscriber in self.subscribers:
                stack.enter_context(subscriber.on_context(self.owner, name, step, total))
            yield


class ContextSource:
    """Notifies the tracker of the cache contexts of every network that has them."""

    def __init__(self, pipeline: Any, networks: Sequence[nn.Module], tracker: StepTracker) -> None:
        self.tracker = tracker
        self.components: tuple[ObservedComponent[ContextSubscriber], ...] = ()
        observed = [network for network in networks if hasattr(network, "cache_context")]
        self.observers = [ContextObserver.subscribe(network, tracker) for network in observed]

    def update(self) -> None:
        """Networks that replace others are not attached."""

    def remove(self) -> None:
        """Restore the networks; safe to call again."""
        while self.observers:
            self.observers.pop().unsubscribe(self.tracker)
