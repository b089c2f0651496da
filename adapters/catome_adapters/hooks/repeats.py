"""What gradient checkpointing repeats in the backward pass, and what was decided when it was called first."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any, cast

from torch import Tensor

from catome_adapters.sites.grid import GridSize
from catome_core import CallMemory, MergePlan, backward_node, refuse_repeat


class SegmentPass:
    """What one pass through a segment decided.

    Attributes:
        size: The grid of the host's call.
        plans: The plans by their number in the segment; None: tokens were left alone.
    """

    def __init__(self, size: GridSize) -> None:
        self.size = size
        self.plans: dict[int, MergePlan | None] = {}


class HostCall:
    """The passes of one call of a host, in their order."""

    def __init__(self) -> None:
        self.passes: defaultdict[object, list[SegmentPass]] = defaultdict(list)


class HostRepetition:
    """A call of a host that is repeated as a whole: its passes come in the same order."""

    def __init__(self, call: HostCall) -> None:
        self.call = call
        self._begun: Counter[object] = Counter()

    def next_pass(self, segment: object) -> SegmentPass:
        """The pass of this segment that is repeated next."""
        self._begun[segment] += 1
        return self.call.passes[segment][self._begun[segment] - 1]


class HostCalls:
    """The calls of a host that gradients flow through; in eager code.

    Attributes:
        current: The call that runs; None if no gradient is recorded.
    """

    def __init__(self) -> None:
        self.current: HostCall | None = None
        self._memory: CallMemory[HostCall] = CallMemory()

    def begin(self, tensor: Tensor | None) -> None:
        """A call with this tensor begins."""
        self.current = HostCall()
        if tensor is not None:
            self._memory.remember(tensor, self.current)

    def repeat(self, tensor: Tensor | None, name: str) -> None:
        """The call with this tensor is repeated as a whole, for the node whose gradient is computed now.

        Raises:
            RuntimeError: If it is unknown.
        """
        call = None if tensor is None else self._memory.recall(tensor)
        _notes()[self] = HostRepetition(call or refuse_repeat(name))


class SegmentPasses:
    """The passes of a segment that gradients flow through.

    A pass is repeated because a node of the graph needs what was not stored, and its node knows what is repeated: so
    nothing is left behind by a repetition that torch ends early.

    Attributes:
        current: The pass that runs, or ran last.
    """

    def __init__(self, name: str, calls: HostCalls) -> None:
        self.name, self.calls = name, calls
        self.current = SegmentPass(GridSize(()))
        self._memory: CallMemory[SegmentPass] = CallMemory()

    def begin(self, tokens: Tensor, size: GridSize) -> SegmentPass | None:
        """Before the first block: the pass that is repeated; None in a forward pass.

        Raises:
            RuntimeError: If it is unknown.
        """
        if backward_node() is not None:
            return self._repeat(tokens)
        self.current = SegmentPass(size)
        if self.calls.current is not None:
            self.calls.current.passes[self].append(self.current)
        self._memory.remember(tokens, self.current)
        return None

    def check(self) -> None:
        """Before a later block.

        Raises:
            RuntimeError: If it is repeated without the first one, which makes the plan.
        """
        if backward_node() is not None and self not in _notes():
            refuse_repeat(self.name)

    def _repeat(self, tokens: Tensor) -> SegmentPass:
        notes, known = _notes(), self._memory.recall(tokens)
        if known is None:
            repetition: HostRepetition | None = notes.get(self.calls)
            known = refuse_repeat(self.name) if repetition is None else repetition.next_pass(self)
        notes[self] = known
        return known


def _notes() -> dict[object, Any]:
    """In a backward pass: what is noted at the node whose gradient is computed now."""
    node = backward_node()
    assert node is not None
    # Torch declares a method, and returns a dictionary.
    return cast("dict[object, Any]", node.metadata)
