"""Observe calls to the methods of an object that is not ours, and restore the object afterwards."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, Self, TypeVar

Subscriber = TypeVar("Subscriber")


class ObservedMethod:
    """Replaces one method of one object, with the same signature.

    A copy is the method of a copy of the object; in a copy of the object's `__dict__`, which a pipeline keeps to put it
    back, it is the same.
    """

    def __init__(self, observer: MethodObserver[Any], name: str, call: Callable[..., Any]) -> None:
        method = getattr(observer.owner, name)
        # First: what another library has wrapped around an observed method carries the attributes of that one.
        functools.update_wrapper(self, method)
        self.observer, self.name, self.call, self.method = observer, name, call, method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the observer's function with the original method and its arguments, while there are subscribers."""
        return self.call(self.method, *args, **kwargs) if self.observer.subscribers else self.method(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        owner = self.observer.owner
        return self if id(vars(owner)) in memo else getattr(copy.deepcopy(owner, memo), self.name)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return getattr, (self.observer.owner, self.name)


class MethodObserver(Generic[Subscriber]):
    """Observed methods of one object, shared by all subscribers, until the last one unsubscribes.

    A copy of the object, shallow, deep or unpickled, is not observed.

    Attributes:
        owner: The object.
        subscribers: The objects to notify.
    """

    attribute: ClassVar[str]
    """The name under which the observer itself is kept on the object."""
    required: ClassVar[tuple[str, ...]] = ()
    """Methods that an object must have to be observed."""

    def __init__(self, owner: Any) -> None:
        self.owner: Any = owner
        self.subscribers: list[Subscriber] = []
        calls = {name: call for name, call in self._calls().items() if hasattr(owner, name)}
        methods = {name: ObservedMethod(self, name, call) for name, call in calls.items()}
        # Python looks this one up on the object itself, for copies of every kind.
        self.replaced: dict[str, Any] = methods | {self.attribute: self, "__getstate__": self._state_of_copy}
        self.before = {name: vars(owner).get(name) for name in self.replaced}
        vars(owner).update(self.replaced)

    @classmethod
    def subscribe(cls, owner: Any, subscriber: Subscriber) -> Self:
        """Notify `subscriber` from now on."""
        observer = vars(owner).get(cls.attribute) or cls(owner)
        observer.subscribers.append(subscriber)
        return observer

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Stop notifying `subscriber`; the last to unsubscribe restores the object."""
        self.subscribers.remove(subscriber)
        if self.subscribers:
            return
        for name, value in self.before.items():
            # Others may have put a method of theirs on top, which stays, or taken ours off. A copy of ours is equal.
            if vars(self.owner).get(name) != self.replaced[name]:
                continue
            if value is None:
                del vars(self.owner)[name]
            else:
                vars(self.owner)[name] = value

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def _state_of_copy(self) -> Any:
        """The object's state as if nobody observed it, for a copy or a pickle."""
        kind: Any = type(self.owner)
        state = kind.__getstate__(self.owner)
        before = {name: value for name, value in self.before.items() if value is not None}
        return {name: value for name, value in state.items() if name not in self.before} | before

    def _calls(self) -> Mapping[str, Callable[..., Any]]:
        """By the name of a method: the function to run instead, with the method itself and its arguments."""
        raise NotImplementedError


class ObservedComponent(Generic[Subscriber]):
    """One component of a pipeline, observed also after the pipeline got another one.

    Attributes:
        component: The component that was found last; None if there is none.
    """

    def __init__(
        self, pipeline: Any, name: str, observer: type[MethodObserver[Subscriber]], subscriber: Subscriber
    ) -> None:
        self.pipeline, self.name, self.kind, self.subscriber = pipeline, name, observer, subscriber
        self.observer: MethodObserver[Subscriber] | None = None
        self._observe()

    @property
    def is_observed(self) -> bool:
        """Whether there is a component with the methods that are observed."""
        return self.observer is not None

    def update(self) -> bool:
        """Observe the component that is there now; whether it replaces one that was observed."""
        if getattr(self.pipeline, self.name, None) is self.component:
            return False
        replaces = self.is_observed
        self.remove()
        self._observe()
        return replaces

    def remove(self) -> None:
        """Stop observing; safe to call again."""
        if self.observer is not None:
            self.observer.unsubscribe(self.subscriber)
            self.observer = None

    def _observe(self) -> None:
        self.component: Any = getattr(self.pipeline, self.name, None)
        if self.component is not None and all(hasattr(self.component, name) for name in self.kind.required):
            self.observer = self.kind.subscribe(self.component, self.subscriber)
