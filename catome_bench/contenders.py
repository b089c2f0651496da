"""Who takes part in a race over one block: the block itself, what merging could reach at best, ours, and the peers.

Every contender runs a twin of the host, with hooks of its own and the same weights.

*Free* is the block on the short sequence, with nothing matched, merged or unmerged. For whole blocks it is just that:
the host called with as many tokens as there are slots. Where only self-attention is short ("attention"), or only its
keys ("keys"), the rest of the block runs in full; views without a copy shorten the tokens before, and one row repeated
by a view stands in for the tokens after. So free is a little cheaper than anything that reads its whole result.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import product
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from catome_adapters import MergeRecipe, MergeSession, MergeSite, attach
from catome_adapters.transformers import layout_of
from catome_adapters.unets import LAYOUT
from catome_bench.blocks import Case
from catome_bench.peers import PEERS
from catome_core import (
    AdaptiveMerge,
    CheckpointSchedule,
    TokenGrid,
    match_tokens,
)

HALF = 0.25  # kept places beside the destinations, which are a quarter of the tokens: half of the tokens go
STEPS = 2000
SCOPES = ("attention", "keys", "block")

Phases = Mapping[str, Callable[[], object]]
ALWAYS: Phases = MappingProxyType({"every step": lambda: None})


class Contender(NamedTuple):
    """A way to run a call.

    Attributes:
        module: What is called, and compiled.
        inputs: Its arguments.
        phases: What a step can be, by name, and what brings that about; the first comes first in a run.
        free: The contender that shows what this one could reach at best.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    phases: Phases = ALWAYS
    free: str | None = None


Entrant = Callable[[ExitStack], Contender]


def fixed_policy(capacity: float = HALF) -> AdaptiveMerge:
    """A fixed number of tokens, without padding."""
    return AdaptiveMerge(threshold=-1, capacity=capacity, spare="fill")


def enter_block(case: Case, device: str, dtype: torch.dtype) -> dict[str, Entrant]:
    """Everybody who can run this block."""
    host, inputs = case.host(device, dtype), case.inputs(device, dtype)
    if case.rows is not None:
        # A cell is two by two tokens of one frame, so that destinations are a quarter of the tokens in a video, too.
        stride = (1, 2, 2)[-len(case.grid) :]
        return _enter_rotary(host, inputs, TokenGrid(case.grid, stride))
    free = {f"free {scope}": partial(_free, host, inputs[0], scope, HALF) for scope in SCOPES}
    peers = {name: partial(_peer, host, inputs[0], name) for name in PEERS}
    return {"unpatched": partial(_unpatched, host, inputs)} | free | enter_ours(host, inputs) | peers


def enter_ours(host: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Entrant]:
    """Half of the tokens merged, in every scope, plain and proportional."""
    return {
        name_ours(scope, proportional): partial(_ours, host, inputs, scope, proportional, HALF, f"free {scope}", None)
        for scope, proportional in product(SCOPES, (False, True))
    }


def name_ours(scope: str, proportional: bool) -> str:
    """What the tables call us."""
    return f"{scope}, proportional" if proportional else scope


def enter_rungs(case: Case, ladder: tuple[float, ...], device: str, dtype: torch.dtype) -> dict[str, Entrant]:
    """Proportional attention at every capacity of a ladder, each beside what is free at it."""
    host, inputs = case.host(device, dtype), case.inputs(device, dtype)
    entrants: dict[str, Entrant] = {"unpatched": partial(_unpatched, host, inputs)}
    for rung in ladder:
        free = f"free at {rung:g}"
        entrants[free] = partial(_free, host, inputs[0], "attention", rung)
        entrants[f"capacity {rung:g}"] = partial(_ours, host, inputs, "attention", True, rung, free, None)
    return entrants


def twin(host: nn.Module) -> nn.Module:
    """A copy of the modules with the same weights and buffers."""
    tensors = [*host.parameters(), *host.buffers()]
    return copy.deepcopy(host, {id(tensor): tensor for tensor in tensors})


def _unpatched(host: nn.Module, inputs: tuple[Tensor, ...], stack: ExitStack) -> Contender:
    return Contender(twin(host), inputs)


def _ours(
    host: nn.Module,
    inputs: tuple[Tensor, ...],
    scope: Any,
    proportional: bool,
    capacity: float,
    free: str | None,
    shape: tuple[int, ...] | None,
    stack: ExitStack,
) -> Contender:
    patched = twin(host)
    schedule = CheckpointSchedule.every(2, STEPS)
    # All levels, and these sites: merge whether or not it is predicted to win.
    recipe = MergeRecipe(fixed_policy(capacity), schedule, scope, proportional, levels="all")
    session = stack.enter_context(attach(patched, recipe, sites=[_site(patched, shape)]))
    return Contender(patched, inputs, phases(session), free)


def _site(host: nn.Module, shape: tuple[int, ...] | None) -> MergeSite:
    """The host's one block; without a shape the host is called with an image, which tells the grid."""
    if shape is None:
        block = host.transformer_blocks[0]
        return MergeSite("block", block, block.attn1, host, layout=LAYOUT)
    layout = layout_of(host.block)
    assert not isinstance(layout, str), layout
    attention = getattr(host.block, "attn1", None) or host.block.attn
    return MergeSite("block", host.block, attention, host, measure=lambda arguments: shape, layout=layout)


def phases(session: MergeSession) -> Phases:
    """Checkpoint and reuse, in any order, of a session whose schedule is every second step."""
    step = -1

    def begin(parity: int) -> None:
        nonlocal step
        step += 1 + (step + 1 + parity) % 2
        session.begin_step(step, STEPS)

    return {"checkpoint": partial(begin, 0), "reuse": partial(begin, 1)}


def _peer(host: nn.Module, image: Tensor, name: str, stack: ExitStack) -> Contender:
    patched = twin(host)
    options = {"threshold": half_threshold(image)} if name == "ca-tome" else {}
    steps = stack.enter_context(PEERS[name](patched, **options))
    if steps is None:
        return Contender(patched, (image,))
    # Steps 8 and 9 as it counts them, of which the first is one of its checkpoints.
    marks = {"checkpoint": partial(steps.begin_step, 7, 50), "reuse": partial(steps.begin_step, 8, 50)}
    return Contender(patched, (image,), marks)


def half_threshold(image: Tensor) -> float:
    """The threshold at which half of all tokens merge: two thirds of the sources lie above it."""
    tokens = rearrange(image, "b c h w -> b (h w) c")
    return match_tokens(tokens, TokenGrid(image.shape[2:])).score.quantile(1 / 3).item()


def _free(host: nn.Module, image: Tensor, scope: str, capacity: float, stack: ExitStack) -> Contender:
    grid = TokenGrid(tuple(image.shape[2:]))
    slots = grid.destinations + grid.places(capacity)
    bare = twin(host)
    if scope == "block":
        return Contender(bare, (image.flatten(2)[:, :, :slots, None].contiguous(memory_format=torch.channels_last),))
    attention = bare.transformer_blocks[0].attn1
    attention.register_forward_pre_hook(partial(_shorten, slots, scope == "keys"), with_kwargs=True)
    if scope == "attention":
        attention.register_forward_hook(lambda module, args, output: output[:, :1].expand(-1, grid.tokens, -1))
    return Contender(bare, (image,))


def _shorten(slots: int, keys: bool, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # Rows of the first sample may stand in for the second: only so are they contiguous without a copy.
    short = args[0].flatten(0, 1)[: len(args[0]) * slots].unflatten(0, (len(args[0]), slots))
    return (args, kwargs | {"encoder_hidden_states": short}) if keys else ((short, *args[1:]), kwargs)


def _enter_rotary(host: nn.Module, inputs: tuple[Tensor, ...], grid: TokenGrid) -> dict[str, Entrant]:
    free = {"free block": partial(_free_rotary, host, inputs, grid.destinations + grid.places(HALF))}
    ours = {
        name_ours(scope, proportional): partial(
            _ours, host, inputs, scope, proportional, HALF, "free block" if scope == "block" else None, grid.shape
        )
        for scope, proportional in product(SCOPES, (False, True))
    }
    return {"unpatched": partial(_unpatched, host, inputs)} | free | ours


def _free_rotary(host: nn.Module, inputs: tuple[Tensor, ...], slots: int, stack: ExitStack) -> Contender:
    return Contender(twin(host), tuple(part[:, :slots].contiguous() for part in inputs))
