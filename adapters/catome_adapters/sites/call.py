"""The calls of a block: their arguments by name, the tokens in them, and what has one row per token."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from catome_adapters.sites.grid import GridSize
from catome_adapters.sites.layout import PerToken
from catome_adapters.sites.plans import BlockPlans
from catome_adapters.sites.site import MergeSite
from catome_core import MergePlan, TokenGrid, gather_anchors

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Signature:
    """The names of a module's arguments, in their order.

    Examples:
        >>> class Block(nn.Module):
        ...     def forward(self, x, context=None): ...
        >>> signature = Signature.of(Block())
        >>> signature.read(((1, 2), {}), "context"), signature.read(((1,), {"context": 3}), "context")
        (2, 3)
        >>> signature.write(((1, 2), {}), "context", 4)
        ((1, 4), {})
    """

    names: tuple[str, ...]

    @classmethod
    def of(cls, module: nn.Module) -> Signature:
        """Read from the class, because other libraries wrap `forward` on instances."""
        parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
        named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return cls(tuple(one.name for one in parameters if one.kind in named))

    def read(self, call: Arguments, name: str | None) -> Any:
        """The value of an argument, None if it was left out; the first argument if `name` is None."""
        args, kwargs = call
        name = name or self.names[0]
        if name in kwargs:
            return kwargs[name]
        return args[self.names.index(name)] if self._is_positional(call, name) else None

    def write(self, call: Arguments, name: str | None, value: Any) -> Arguments:
        """The same call with another value of one argument."""
        args, kwargs = call
        name = name or self.names[0]
        if not self._is_positional(call, name):
            return args, kwargs | {name: value}
        index = self.names.index(name)
        return (*args[:index], value, *args[index + 1 :]), kwargs

    def _is_positional(self, call: Arguments, name: str) -> bool:
        return name not in call[1] and name in self.names and self.names.index(name) < len(call[0])


class BlockCall:
    """Reads and rewrites the calls of one block.

    Attributes:
        is_first: Whether the block is the first of its segment. The compiler guards on this value, and not on which
            object it is, so that equal blocks share a graph.
        is_last: Whether it is the last.
    """

    def __init__(self, site: MergeSite, is_first: bool = True, is_last: bool = True) -> None:
        self.site, self.layout = site, site.layout
        self.is_first, self.is_last = is_first, is_last
        self.signature = Signature.of(site.block)

    def tokens(self, call: Arguments) -> Tensor:
        """The tokens (batch, tokens, channels) of a call."""
        return self._batch_first(self.signature.read(call, self.layout.tokens))

    def with_tokens(self, call: Arguments, tokens: Tensor) -> Arguments:
        """The same call with other tokens."""
        return self.signature.write(call, self.layout.tokens, self._batch_first(tokens))

    def output(self, returned: Any) -> Tensor:
        """The tokens (batch, tokens, channels) in what the block returned."""
        return self._batch_first(returned if isinstance(returned, Tensor) else returned[self.layout.output or 0])

    def with_output(self, returned: Any, tokens: Tensor) -> Any:
        """The same result with other tokens."""
        tokens, index = self._batch_first(tokens), self.layout.output or 0
        if isinstance(returned, Tensor):
            return tokens
        return type(returned)((*returned[:index], tokens, *returned[index + 1 :]))

    def locate(self, tokens: int, size: GridSize, grid: TokenGrid) -> tuple[int, int]:
        """Number of tokens in front of the grid's and behind, among this number of tokens of the block.

        Raises:
            ValueError: If there is another number of tokens than the grid has, and the layout allows no others.
        """
        extra = tokens - grid.tokens
        behind = size.extra or 0
        if size.extra is None and self.layout.extra_side == "back":
            behind = extra
        front = extra - behind if self.layout.extra_side == "front" else 0
        if min(front, behind) < 0 or front + behind != extra or (extra and self.layout.extra_side is None):
            raise ValueError(
                f"{self.site.name} got {tokens} tokens; the model's input gives a grid of "
                f"{' x '.join(map(str, grid.shape))} with {grid.prefix} in front, which are {grid.tokens}: pass "
                "sites=[MergeSite(..., grid_of=...)] with a function that computes the grid of these tokens"
            )
        return front, behind

    def text(self, call: Arguments) -> tuple[int, int]:
        """Number of text tokens among the keys of self-attention, in front of the block's tokens and behind."""
        if self.layout.cached and self.signature.read(call, "kv_cache_mode") == "cached":
            return self.signature.read(call, self.layout.cached).k.shape[1], 0
        text = self.signature.read(call, self.layout.text) if self.layout.text else None
        count = 0 if text is None else text.shape[1]
        return (count, 0) if self.layout.text_side == "front" else (0, count)

    def _batch_first(self, tokens: Tensor) -> Tensor:
        """From the block's order of dimensions to (batch, tokens, channels), or back."""
        return tokens.transpose(0, 1) if self.layout.tokens_first else tokens


def gather_rows(call: Arguments, signature: Signature, site: MergeSite, plans: BlockPlans) -> Arguments:
    """The call with one row per slot in every argument that has one row per token: the row of the slot's anchor.

    Raises:
        ValueError: If an argument has another number of rows, or samples need rows of their own and there is no batch.
    """
    for argument in site.layout.per_token:
        value = signature.read(call, argument.argument)
        if value is not None:
            call = signature.write(call, argument.argument, _gather(value, argument, site, plans))
    return call


def _gather(value: Any, argument: PerToken, site: MergeSite, plans: BlockPlans, inside: bool = False) -> Any:
    if isinstance(value, Tensor):
        return _gather_tensor(value, argument, site, plans)
    if isinstance(value, int) and not inside:
        return value - plans.tokens.slot.shape[1] + plans.tokens.size.shape[1]
    if isinstance(value, dict):
        return {name: _gather(part, argument, site, plans, inside=True) for name, part in value.items()}
    if not isinstance(value, (tuple, list)):
        return value
    return type(value)(
        _gather(part, argument, site, plans, inside=True) if inside or argument.entry in (None, index) else part
        for index, part in enumerate(value)
    )


def _gather_tensor(rows: Tensor, argument: PerToken, site: MergeSite, plans: BlockPlans) -> Tensor:
    if argument.ndim not in (None, rows.ndim):
        return rows
    axis = argument.axis if argument.axis is not None else int(rows.ndim > 2)
    plan = _plan_for(rows.shape[axis], site.prefix, plans)
    if plan is None:
        return _unchanged(rows, argument, axis, site, plans)
    if argument.add_batch:
        gathered = gather_anchors(rows[None], plan, axis % rows.ndim + 1)
        return gathered[:, None] if gathered.ndim == 3 else gathered
    if axis == 0 and site.layout.tokens_first:
        return gather_anchors(rows.transpose(0, 1), plan, 1).transpose(0, 1)
    if axis == 0 and len(plan.slot) > 1:
        raise ValueError(
            f"{site.name}: argument {argument.argument} has shape {tuple(rows.shape)} and no batch dimension, "
            "so samples cannot have rows of their own: declare BlockLayout(..., shared=True), one plan for all"
        )
    return gather_anchors(rows, plan, axis)


def _plan_for(length: int, prefix: int, plans: BlockPlans) -> MergePlan | None:
    """The plan for this number of rows: of the block's tokens, with the text, or without the prefix."""
    tokens = plans.tokens.slot.shape[1]
    if length == tokens:
        return plans.tokens
    if length == plans.keys.slot.shape[1]:
        return plans.keys
    if prefix and length == tokens - prefix:
        slot, size, anchor = (part[:, prefix:] for part in plans.tokens[:3])
        # Padding slots have anchor 0, which lies in the prefix.
        return MergePlan(slot - prefix, size, (anchor - prefix).clamp_min(0))
    return None


def _unchanged(rows: Tensor, argument: PerToken, axis: int, site: MergeSite, plans: BlockPlans) -> Tensor:
    if argument.optional or rows.shape[axis] == 1:
        return rows
    tokens, keys = (plan.slot.shape[1] for plan in plans)
    with_text = f" or {keys} with the text" if keys != tokens else ""
    raise ValueError(
        f"{site.name}: argument {argument.argument} has shape {tuple(rows.shape)}; expected {tokens} rows"
        f"{with_text} along dimension {axis}, one for each token: it cannot be merged. Use scope='keys', which leaves "
        "it as it is, or declare it with PerToken(..., axis=...) in the site's layout"
    )
