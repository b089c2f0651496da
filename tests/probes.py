"""What tests see of a network, of a policy and of attention while they run."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import catome_adapters
import catome_core
from catome_core import AdaptiveMerge, Match

ROOTS = [Path(package.__file__).parent for package in (catome_core, catome_adapters)]


def calls_of_ours(work: Callable[[], object]) -> list[Path]:
    """The file of every function of this library that was called meanwhile, in their order."""
    called: list[Path] = []

    def profile(frame, event, _) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and any(root in path.parents for root in ROOTS):
            called.append(path)

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return called


class Operations(TorchDispatchMode):
    """Records the operations of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    @classmethod
    def of(cls, work: Callable[[], object]) -> list[str]:
        """Those of this work."""
        with cls() as operations:
            work()
        return operations.names

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class CountingMerge(AdaptiveMerge):
    """Counts how often it matches during each call of a watched network: not zero means that pairs were recomputed."""

    calls: list[int] = field(default_factory=list, compare=False)

    def watch(self, network: nn.Module) -> None:
        network.register_forward_pre_hook(lambda *_: self.calls.append(0))

    def match(self, *args: Any, **kwargs: Any) -> Match:
        if self.calls:
            self.calls[-1] += 1
        return super().match(*args, **kwargs)

    @property
    def recomputed(self) -> list[int]:
        """The calls, from 0, that matched."""
        return [call for call, matches in enumerate(self.calls) if matches]


def anatomy(network: nn.Module) -> dict[str, Any]:
    """Whatever a patch could leave behind: modules, their attributes, processors, hooks, forwards, weights' names."""
    parts = {name: _anatomy(module) for name, module in network.named_modules()}
    return parts | {"state_dict": list(network.state_dict())}


def _anatomy(module: nn.Module) -> tuple[Any, ...]:
    hooks = {name: len(value) for name, value in vars(module).items() if "hooks" in name and value is not None}
    return type(module), sorted(vars(module)), hooks, module.forward, type(getattr(module, "processor", None))


class AttentionKeys(TorchFunctionMode):
    """Records the keys (batch, heads, tokens, channels) of every fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is scaled_dot_product_attention:
            self.keys.append(args[1] if len(args) > 1 else kwargs["key"])
        return func(*args, **(kwargs or {}))


class Interrupted(Exception):
    """What `failing` raises."""


@contextmanager
def failing(module: nn.Module, calls_before: int = 0) -> Iterator[None]:
    """Within this block the module raises Interrupted when it is called, after this many calls that succeed."""
    left = calls_before

    def fail(*_: object) -> None:
        nonlocal left
        if left == 0:
            raise Interrupted
        left -= 1

    handle = module.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        handle.remove()
