"""One block's calls: finding the tokens in them, and exchanging tokens and what follows them for merged ones."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from catome_adapters.arguments import Arguments, Signature
from catome_adapters.layouts import Follow, Side
from catome_adapters.sites import MergeSite
from catome_core import MergePlan, TokenGrid
from catome_core.spans import Span, take


class BlockCalls:
    """Reads and rewrites the calls of one block and of its self-attention.

    Attributes:
        span: Where the plan's tokens lie in the block's sequence, as of the last `measure`.
        text: Text tokens that self-attention sees besides.
        leads: Whether the block is the first of its segment; the compiler guards on this, not on which object it is.
    """

    def __init__(self, site: MergeSite, leads: bool = True) -> None:
        self.site, self.layout, self.leads = site, site.layout, leads
        self.signature = Signature.of(site.block)
        self.span, self.text = Span(), 0

    def tokens(self, call: Arguments) -> Tensor:
        """The tokens of a call of the block."""
        return self.signature.read(call, self.layout.tokens)

    def measure(self, call: Arguments, grid: TokenGrid) -> None:
        """Note how many tokens the block's sequence has besides the grid's.

        Raises:
            ValueError: If it has another number of tokens than the grid, and the layout names no rest.
        """
        tokens, layout = self.tokens(call), self.layout
        rest = tokens.shape[1] - grid.tokens
        if rest < 0 or (rest and layout.rest_side is None):
            raise ValueError(
                f"{self.site.name} got {tokens.shape[1]} tokens; the model's input tells a grid of "
                f"{' x '.join(map(str, grid.shape))} with {grid.prefix} in front, which are {grid.tokens}: pass "
                "sites=[MergeSite(..., measure=...)] with a measure that tells the grid of these tokens"
            )
        behind = getattr(self.site.measure, "others", 0) if layout.rest_side == "front" else rest
        self.lie(Span(rest - behind, behind), call)

    def lie(self, span: Span, call: Arguments) -> None:
        """Note that the plan's tokens lie there, as in the block before, and how much text comes with them."""
        text = None if self.layout.text is None else self.signature.read(call, self.layout.text)
        self.span, self.text = span, 0 if text is None else text.shape[1]

    def with_tokens(self, call: Arguments, tokens: Tensor) -> Arguments:
        """The same call of the block with other tokens."""
        return self.signature.write(call, self.layout.tokens, tokens)

    def output(self, returned: Any) -> Tensor:
        """The tokens in what the block returned."""
        return returned if isinstance(returned, Tensor) else returned[self.layout.output or 0]

    def with_output(self, returned: Any, tokens: Tensor) -> Any:
        """The same result with other tokens."""
        if isinstance(returned, Tensor):
            return tokens
        index = self.layout.output or 0
        return type(returned)((*returned[:index], tokens, *returned[index + 1 :]))

    def follow(self, call: Arguments, plan: MergePlan) -> Arguments:
        """The block's call with rows of the anchors in every argument that follows the tokens."""
        return self._follow(call, self.signature, plan)

    def key_span(self, attention: nn.Module) -> Span:
        """Where the plan's tokens lie among the keys of a self-attention; only the main one sees text."""
        return self._with_text() if attention is self.site.attention else self.span

    def merge_attended(self, signature: Signature, call: Arguments, plan: MergePlan) -> Arguments:
        """A call of self-attention with merged tokens, and what follows them."""
        first, *others = self.layout.attended or (None,)
        tokens = signature.read(call, first)
        merged = self._span_with(tokens.shape[1], self.span.tokens(plan)).merge(tokens, plan)
        call = signature.write(call, first, merged)
        for name in others:
            given = signature.read(call, name)
            same = merged if given is tokens else self.span.merge(given, plan)
            call = signature.write(call, name, same)
        return self._follow(call, signature, plan)

    def unmerge_attended(self, returned: Any, plan: MergePlan) -> Any:
        """What self-attention returned, with every token's own row again; text, which comes second, stays as it is."""
        if isinstance(returned, Tensor):
            return self._span_with(returned.shape[1], self.span.slots(plan)).unmerge(returned, plan)
        slots = self.span.slots(plan)
        return type(returned)(
            self.span.unmerge(part, plan) if index != 1 and _is_sequence(part, slots) else part
            for index, part in enumerate(returned)
        )

    def attended(self, returned: Any, grid: TokenGrid) -> Tensor:
        """The grid's tokens in what self-attention returned without a merge."""
        tokens = returned if isinstance(returned, Tensor) else returned[0]
        return self._span_with(tokens.shape[1], self.span.outside + grid.tokens).within(tokens)

    def _with_text(self) -> Span:
        return _beside(self.span, self.text, self.layout.text_side)

    def _span_with(self, length: int, expected: int) -> Span:
        """Single-stream blocks hand text and image to self-attention as one sequence."""
        return _beside(self.span, length - expected, self.layout.text_side)

    def _follow(self, call: Arguments, signature: Signature, plan: MergePlan) -> Arguments:
        for follow in self.layout.follows:
            value = signature.read(call, follow.argument)
            if value is not None:
                call = signature.write(call, follow.argument, self._followed(value, follow, plan))
        return call

    def _followed(self, value: Any, follow: Follow, plan: MergePlan) -> Any:
        if isinstance(value, Tensor):
            return self._rows(value, follow, plan)
        entries = range(len(value)) if follow.entry is None else (follow.entry,)
        return type(value)(
            self._rows(part, follow, plan) if index in entries and isinstance(part, Tensor) else part
            for index, part in enumerate(value)
        )

    def _rows(self, rows: Tensor, follow: Follow, plan: MergePlan) -> Tensor:
        if follow.ndim not in (None, rows.ndim):
            return rows
        axis = follow.axis if follow.axis is not None else int(rows.ndim > 2)
        index = self._index(rows.shape[axis], plan)
        if index is None:
            return self._unchanged(rows, follow, axis, plan)
        if not follow.lift:
            self._refuse_unshared(rows, follow, axis, plan)
            return take(rows, index, axis)
        taken = take(rows[None], index, axis % rows.ndim + 1)
        return taken[:, None] if taken.ndim == 3 else taken

    def _refuse_unshared(self, rows: Tensor, follow: Follow, axis: int, plan: MergePlan) -> None:
        if axis == 0 and len(plan.slot) > 1:
            raise ValueError(
                f"{self.site.name}: argument {follow.argument} has shape {tuple(rows.shape)} and no batch dimension, "
                "so samples cannot have rows of their own: declare BlockLayout(..., shared=True), one plan for all"
            )

    def _index(self, length: int, plan: MergePlan) -> Tensor | None:
        """The anchors' rows among so many: of the block's tokens, with the text, or without the prefix."""
        prefix = self.site.prefix
        known = {span.tokens(plan): span for span in (self._with_text(), self.span)}
        if length in known:
            return known[length].anchors(plan)
        if prefix and length == self.span.tokens(plan) - prefix:
            return self.span.anchors(plan)[:, prefix:] - prefix
        return None

    def _unchanged(self, rows: Tensor, follow: Follow, axis: int, plan: MergePlan) -> Tensor:
        if follow.optional or rows.shape[axis] == 1:
            return rows
        tokens = self.span.tokens(plan)
        with_text = f" or {tokens + self.text} with the text" if self.text else ""
        raise ValueError(
            f"{self.site.name}: argument {follow.argument} has shape {tuple(rows.shape)}; expected {tokens} rows"
            f"{with_text} along dimension {axis}, one for each token: it cannot follow merged tokens. Use "
            "scope='keys', which merges behind it, or declare it with Follow(..., axis=...) in the site's layout"
        )


def _beside(span: Span, count: int, side: Side) -> Span:
    return Span(span.front + count, span.back) if side == "front" else Span(span.front, span.back + count)


def _is_sequence(part: Any, length: int) -> bool:
    return isinstance(part, Tensor) and part.ndim == 3 and part.shape[1] == length
