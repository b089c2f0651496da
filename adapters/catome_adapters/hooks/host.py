"""The module whose call gives the size of the grid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from catome_adapters.hooks.owner import HookOwner
from catome_adapters.hooks.repeats import HostCalls
from catome_adapters.sites.call import Signature
from catome_adapters.sites.grid import GridSize, Measure, grid_size
from catome_adapters.steps.observe import ObservedComponent
from catome_core import backward_node, has_values, refuse_jit_trace

CallShapes = tuple[GridSize, torch.Size, torch.dtype, torch.device]
"""Of a call: the size of the grid, and what the first of its arguments is that is a tensor."""


class Host(HookOwner):
    """A hook on one host: the module whose arguments give the grid of the tokens inside.

    The session is involved only in calls that are out of the ordinary: not the first of their context in a step.

    Attributes:
        module: The module.
        size: The grid of its last call; None before the first.
        context: The context that its next calls belong to.
        in_step: Whether the step of its next calls is known.
        components: The parts of the pipeline that report the steps, as they were when last observed.
        recorded: Its calls that gradients flow through.
        settled: The call after which nothing is to be decided in this run, if the next ones are like it: nothing
            merges. None: every call counts.
    """

    def __init__(self, module: nn.Module, measure: Measure, before_call: Callable[[Host], None]) -> None:
        self.module, self.measure, self.before_call = module, measure, before_call
        self.names = Signature.of(module).names
        self.size: GridSize | None = None
        self.context: str | None = None
        self.in_step = False
        self.components: Sequence[ObservedComponent[Any]] = ()
        self.recorded = HostCalls()
        self.settled: CallShapes | None = None
        self._last: CallShapes | None = None
        self._calls: Counter[str | None] = Counter()
        self.handle: Any = module.register_forward_pre_hook(self._before, with_kwargs=True)

    @property
    def calls(self) -> int:
        """Number of calls of the present context in this step, before the one that begins."""
        return self._calls[self.context]

    @property
    def is_recorded(self) -> bool:
        """Whether gradients flow through its call, or through the one that a backward pass repeats; not if compiled."""
        if torch.compiler.is_compiling():
            return False
        return self.recorded.current is not None or backward_node() is not None

    def refuse_block(self, site: str) -> NoReturn:
        """Raise ValueError: the host has not been called before the block of this site."""
        raise ValueError(
            f"{site} was called, and its host {type(self.module).__name__}, which gives the grid, was not: pass "
            "MergeSite(..., host=...) with a module that is called before the block, such as the model itself"
        )

    def begin_step(self, in_step: bool) -> None:
        """Before a step, or before calls whose step is unknown."""
        self.in_step = in_step
        self._calls.clear()

    @property
    def was_called_once(self) -> bool:
        """Whether this step has called it once, in no context."""
        return self._calls == {None: 1} and self._last is not None

    def settle(self) -> None:
        """Calls like the last one are nothing out of the ordinary, and their blocks are left alone."""
        self.settled = self._last

    def remove(self) -> None:
        """Remove the hook."""
        self.handle.remove()

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.is_copy:
            return
        given = dict(zip(self.names, args, strict=False)) | kwargs
        # In the order of the signature, whatever that of the keywords: some grids are those of the first argument.
        given = {name: given[name] for name in (*self.names, *kwargs) if name in given}
        if torch.compiler.is_compiling():
            self.size = grid_size(self.measure(given))
            return
        if module is not self.module:
            raise ValueError(
                f"a replica of {type(module).__name__} was called, of which torch.nn.DataParallel makes one for every "
                "GPU: all would share one plan; use a process for each GPU"
            )
        if self.settled is None:
            refuse_jit_trace()
        size = grid_size(self.measure(given))
        tensor = next((value for value in given.values() if isinstance(value, Tensor)), None)
        self._last = None if tensor is None else (size, tensor.shape, tensor.dtype, tensor.device)
        if self._is_usual:
            self._calls[None] += 1
        else:
            self._begin_call(tensor)
        self.size = size

    @property
    def _is_usual(self) -> bool:
        """Whether the run is settled, and this is the only call of its step, like that of the step before."""
        if self.settled is None or self.settled != self._last or self._calls or torch.is_grad_enabled():
            return False
        return self.in_step and not self._was_replaced

    @property
    def _was_replaced(self) -> bool:
        for one in self.components:
            # Pipelines raise an error with a long text for what they do not have, which takes longer than all of this.
            if getattr(one.pipeline, "__dict__", {}).get(one.name) is one.component:
                continue
            if getattr(one.pipeline, one.name, None) is not one.component:
                return True
        return False

    def _begin_call(self, tensor: Tensor | None) -> None:
        """A call in eager code; `tensor` is the first of its arguments that is one."""
        if backward_node() is not None:
            self.recorded.repeat(tensor, type(self.module).__name__)
            return
        if tensor is None or has_values(tensor):
            self._count_call()
        self.recorded.current = None
        if torch.is_grad_enabled():
            self.recorded.begin(tensor)

    def _count_call(self) -> None:
        if self._calls[self.context] or not self.in_step or self.settled is not None or self._was_replaced:
            self.before_call(self)
        # Only now: a replaced component begins a new run.
        self._calls[self.context] += 1
