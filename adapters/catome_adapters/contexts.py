"""Which of a step's calls of the network it is, from the cache contexts that diffusers' pipelines open around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple, Protocol

from torch import nn

from catome_adapters.hearing import Hearing


class Moment(NamedTuple):
    """Where a denoising loop is, as far as the context says: step `step`, from 0, of `total`."""

    step: int | None
    total: int | None


class ContextListener(Protocol):
    """What is told of the contexts."""

    def in_context(self, network: nn.Module, name: str, moment: Moment) -> AbstractContextManager[None]:
        """Until this ends, calls of the network belong to the context of this name."""
        ...


class ContextBell(Hearing[ContextListener]):
    """Hears of `cache_context` of one network, which pipelines open around "cond" and around "uncond"."""

    mark = "catome_contexts"

    def _calls(self) -> Mapping[str, Callable[..., Any]]:
        return {"cache_context": self._cache_context}

    @contextmanager
    def _cache_context(self, method: Callable[..., Any], name: str, **fields: Any) -> Iterator[None]:
        moment = Moment(fields.get("step_index"), fields.get("num_inference_steps"))
        with ExitStack() as stack:
            stack.enter_context(method(name, **fields))
            for listener in self.listeners:
                stack.enter_context(listener.in_context(self.owner, name, moment))
            yield


class StepCalls:
    """Which calls of the present step have been told of, and to which context the next one belongs.

    Attributes:
        context: What the caller named it.
        told: The calls: by the caller (None) or by a network, and their context.
    """

    def __init__(self) -> None:
        self.context: str | None = None
        self.told: set[tuple[nn.Module | None, str | None]] = set()
        self._inside: dict[nn.Module, str] = {}

    @property
    def explicit(self) -> bool:
        """Whether the caller tells the steps."""
        return any(teller is None for teller, _ in self.told)

    def context_of(self, network: nn.Module) -> str | None:
        """A network's own context goes before the one that the caller named."""
        return self._inside.get(network, self.context)

    @contextmanager
    def inside(self, network: nn.Module, name: str) -> Iterator[None]:
        """Until this ends, calls of this network belong to the context of this name."""
        outer = self._inside.copy()
        self._inside[network] = name
        try:
            yield
        finally:
            self._inside = outer
