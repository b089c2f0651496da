"""Calls out of the ordinary: repeated by gradient checkpointing in the backward pass, without values, or traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, NoReturn, TypeVar

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import is_fake
from torch.autograd.graph import Node
from torch.utils.weak import WeakTensorKeyDictionary

Decision = TypeVar("Decision")


def backward_node() -> Node | None:
    """The node of the graph whose gradient is computed now; None outside a backward pass. Not for compiled code."""
    # Torch asks the same way; it has no public one.
    return torch._C._current_autograd_node()  # pyright: ignore[reportPrivateUsage]


class CallMemory(Generic[Decision]):
    """What was decided in calls, by the tensor that each was made with, for as long as that tensor lives.

    Gradient checkpointing keeps the tensors that it is given, and repeats the call with the very same ones, perhaps
    many steps later. A copy of a memory is empty.

    Examples:
        >>> memory, tokens = CallMemory[str](), torch.ones(2)
        >>> memory.remember(tokens, "plan of step 0")
        >>> memory.recall(tokens), memory.recall(torch.ones(2))
        ('plan of step 0', None)
    """

    def __init__(self) -> None:
        self._decisions: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def decide(self, tensor: Tensor, make: Callable[[], Decision], name: str) -> Decision:
        """What `make` returns, or in a backward pass what the call of this name that is repeated decided.

        Raises:
            RuntimeError: If that is unknown.
        """
        if backward_node() is not None:
            return self.recall(tensor) or refuse_repeat(name)
        decision = make()
        if torch.is_grad_enabled():
            self.remember(tensor, decision)
        return decision

    def remember(self, tensor: Tensor, decision: Decision) -> None:
        """Note what a call with this tensor decides."""
        self._decisions[tensor] = None if tensor in self._decisions else decision

    def recall(self, tensor: Tensor) -> Decision | None:
        """What the call with this tensor decided; None if it is unknown, or if several calls were made with it."""
        return self._decisions.get(tensor)

    def __reduce__(self) -> tuple[type[CallMemory[Decision]], tuple[()]]:
        return type(self), ()


def refuse_repeat(name: str) -> NoReturn:
    """Raise RuntimeError: it is unknown which call of this name is repeated."""
    raise RuntimeError(
        f"{name} was called in a backward pass, with tokens that no call before had, or several, so that the plan they "
        "merged by is unknown: gradient checkpointing must repeat single blocks, as enable_gradient_checkpointing() "
        "has it, or whole networks, with use_reentrant=False and a tensor of its own for every call"
    )


def has_values(tokens: Tensor) -> bool:
    """Whether a call with these tokens computes numbers, and does not just find shapes or record operations.

    Examples:
        >>> has_values(torch.ones(2)), has_values(torch.ones(2, device="meta"))
        (True, False)
    """
    # Not `is_exporting()`: before torch 2.14 it is True in all compiled code.
    if torch.compiler._is_exporting_flag:  # pyright: ignore[reportPrivateUsage]
        return False
    return torch.compiler.is_dynamo_compiling() or not (tokens.is_meta or _is_fake(tokens))


def is_captured(tokens: Tensor) -> bool:
    """Whether a call with these tokens becomes a CUDA graph: nothing can be read, and memory is filled later."""
    return tokens.is_cuda and torch.cuda.is_current_stream_capturing()


def refuse_jit_trace() -> None:
    """Raise RuntimeError within `torch.jit.trace`, for which every size of a tensor is a tensor."""
    if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        raise RuntimeError(
            "merging was called in torch.jit.trace, whose sizes are tensors; use torch.export.export or torch.compile"
        )


def _is_fake(tokens: Tensor) -> bool:
    # Torch's own test looks for the protocols of subclasses first, and is asked at every call of every block.
    is_wrapped = torch._is_functional_tensor  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    if type(tokens) is Tensor and not is_wrapped(tokens) and not is_functorch_wrapped_tensor(tokens):
        return False
    return is_fake(tokens)
