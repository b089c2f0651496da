"""Around one self-attention: merge its tokens, make it aware of slots, unmerge its result."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from catome_adapters.hooks.arguments import AttentionNeeds, ByArguments
from catome_adapters.hooks.backend import kernel_for
from catome_adapters.hooks.failures import explain_failure, refuse_uncalled
from catome_adapters.hooks.forward import ForwardState
from catome_adapters.hooks.lattices import needs_of_call
from catome_adapters.hooks.substitutes import find_substitutes, skips_attention
from catome_adapters.sites.call import Arguments, Signature, gather_rows
from catome_adapters.sites.plans import BlockPlans
from catome_adapters.sites.site import MergeSite
from catome_core import InterceptAttention, merge, unmerge

# torch has no public way to see how many function modes are open, or to close one from outside.
_count_function_modes: Callable[[], int] = torch._C._len_torch_function_stack  # pyright: ignore[reportPrivateUsage]
_pop_function_mode: Callable[[], object] = torch._C._pop_torch_function_stack  # pyright: ignore[reportPrivateUsage]

Contexts = tuple[AbstractContextManager[Any], ...]


class AttentionScope(Protocol):
    """The part of a scope that concerns self-attention."""

    def before_attention(
        self, state: ForwardState, attention: SelfAttention, call: Arguments
    ) -> tuple[Arguments, Contexts]:
        """The arguments that it is called with, and the contexts that are open while it runs."""
        ...

    def after_attention(self, state: ForwardState, attention: SelfAttention, returned: Any) -> Any:
        """Its result."""
        ...


class EnclosedAttention(nn.Module):
    """A self-attention whose calls go through a `SelfAttention`.

    A pair of torch's hooks cannot enclose a call: after a `KeyboardInterrupt` no hook runs, and a context that one hook
    has opened would stay open. So the module's class becomes a subclass of the same name while a session is attached. A
    copy of the module, or one that is unpickled, has the class as it was.
    """

    catome_attention: SelfAttention | None = None
    catome_kind: ClassVar[type[nn.Module]]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the block calls."""
        attention = self.catome_attention
        if attention is None:
            return super().__call__(*args, **kwargs)
        return attention.run(super().__call__, args, kwargs)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        kind, state = self.catome_kind, self.__getstate__()
        return kind.__new__, (kind,), {name: part for name, part in state.items() if name != "catome_attention"}


@cache
def _enclosed(kind: type[nn.Module]) -> type[nn.Module]:
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (EnclosedAttention, kind), names | {"catome_kind": kind})


def is_enclosed(module: nn.Module) -> bool:
    """Whether a session is at work on this self-attention."""
    return "catome_attention" in vars(module)


class SelfAttention:
    """One self-attention of a segment; its module calls `run`."""

    def __init__(
        self,
        site: MergeSite,
        module: nn.Module,
        scope: AttentionScope,
        state: ForwardState,
        needs: AttentionNeeds,
        on_output: Callable[[Tensor], None] | None,
    ) -> None:
        self.site, self.module, self.scope, self.state, self.needs = site, module, scope, state, needs
        self.on_output, self.kernel = on_output, kernel_for(module, needs)
        # Looked up here: in compiled code, by the module, it would be another graph for every block.
        self.signature, self.sees_text = Signature.of(module), module is site.attention
        # Under a class that others have put on top, ours is still there.
        if not isinstance(module, EnclosedAttention):
            module.__class__ = _enclosed(type(module))
        vars(module)["catome_attention"] = self
        self.by_arguments = ByArguments(site, module, needs) if site.layout.takes_keys else None

    def run(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the module as the scope requires."""
        state = self.state
        state.attended = True
        # What is skipped returns its tokens or values: all of them, which fewer keys would not fit.
        if not state.active or self._is_skipped((args, kwargs)):
            returned = forward(*args, **kwargs)
            if self.on_output is not None and state.match_output:
                self.on_output(state.own_tokens(returned, self.site.layout.text_side))
            return returned
        call, contexts = self.scope.before_attention(state, self, (args, kwargs))
        try:
            returned = run_within(contexts, forward, call)
        except RuntimeError as error:
            explain_failure(error, self.site, self.signature, call, None if self.needs.merge_keys else state.plans)
            raise
        for context in contexts:
            if isinstance(context, InterceptAttention):
                self._expect_called(context)
        return self.scope.after_attention(state, self, returned)

    def merge(self, call: Arguments, plans: BlockPlans) -> Arguments:
        """The call with merged tokens, and one row per slot in what has one row per token."""
        first, *others = self.site.layout.attention_arguments or (None,)
        tokens: Tensor = self.signature.read(call, first)
        merged = merge(tokens, plans.tokens if tokens.shape[1] == plans.tokens.slot.shape[1] else plans.keys)
        call = self.signature.write(call, first, merged)
        for name in others:
            given = self.signature.read(call, name)
            call = self.signature.write(call, name, merged if given is tokens else merge(given, plans.tokens))
        return gather_rows(call, self.signature, self.site, plans)

    def unmerge(self, returned: Any, plans: BlockPlans) -> Any:
        """The result with one row per token again; text, which comes second in a tuple, stays as it is."""
        slots = plans.tokens.size.shape[1]
        if isinstance(returned, Tensor):
            return unmerge(returned, plans.tokens if returned.shape[1] == slots else plans.keys)
        return type(returned)(
            unmerge(part, plans.tokens)
            if index != 1 and isinstance(part, Tensor) and part.ndim == 3 and part.shape[1] == slots
            else part
            for index, part in enumerate(returned)
        )

    def aware(self, call: Arguments, plans: BlockPlans) -> tuple[Arguments, Contexts]:
        """The call and the contexts that make attention aware of slots."""
        plan = plans.keys if self.sees_text else plans.tokens
        needs = self.needs if self.needs.lattice is None else needs_of_call(self.needs, self.state, self.site, plan)
        if self.by_arguments is not None and needs.near is None and self.by_arguments.are_taken:
            return self.by_arguments.aware(call, plan, needs)
        options: dict[str, Any] = {"padded": needs.padded, "merge_keys": needs.merge_keys, "near": needs.near}
        options |= {"values": "mean" if needs.lattice is None else "anchor", "takes_mask": self.kernel.takes_mask}
        return call, (InterceptAttention(plan, proportional=needs.proportional, **options), *self.kernel.contexts)

    def begin_step(self) -> None:
        """Before a step, outside compiled code: what else is at work on the module may have changed."""
        self.kernel = kernel_for(self.module, self.needs)
        if self.by_arguments is not None:
            self.by_arguments.begin_step()

    def remove(self) -> None:
        """Give the module its class back."""
        if self.by_arguments is not None:
            self.by_arguments.remove()
        vars(self.module).pop("catome_attention", None)
        # Others may have put a class of theirs on top; without a `SelfAttention` ours does nothing.
        self.module.__class__ = vars(type(self.module)).get("catome_kind", type(self.module))

    def _is_skipped(self, call: Arguments) -> bool:
        """Whether an argument says that it shall not attend in this call, or diffusers skips it."""
        bypass = self.site.layout.bypass
        bypassed = bypass is not None and bool(self.signature.read(call, bypass))
        return bypassed or ("_diffusers_hook" in vars(self.module) and skips_attention(self.module))

    def _expect_called(self, context: InterceptAttention) -> None:
        missed = context.required and not context.was_called
        # What a cache over steps returns was computed in an earlier step, merged or not.
        if missed and (context.projected or not find_substitutes(self.module)):
            refuse_uncalled(self.site, self.module, context.length)


def run_within(contexts: Contexts, forward: Callable[..., Any], call: Arguments) -> Any:
    """Call `forward` with all contexts open, the first outermost; afterwards no function mode of theirs is left."""
    if not contexts or torch.compiler.is_compiling():
        return _nest(contexts, forward, call)
    depth = _count_function_modes()
    try:
        return _nest(contexts, forward, call)
    finally:
        # An interrupt may come between the moment a mode is on the stack and the `with` statement that removes it.
        while _count_function_modes() > depth:
            _pop_function_mode()


def _nest(contexts: Contexts, forward: Callable[..., Any], call: Arguments) -> Any:
    if not contexts:
        return forward(*call[0], **call[1])
    with contexts[0]:
        return _nest(contexts[1:], forward, call)
