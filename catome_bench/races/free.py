"""The best that merging could reach: the block on the short sequence, with nothing matched, merged or unmerged.

For whole blocks that is the host called with as many tokens as there are slots. Where only self-attention is short
("attention"), or only its keys ("keys"), the rest of the block runs in full: views without a copy shorten the tokens
before it, and one row expanded by a view replaces the tokens after it. So free is slightly cheaper than anything that
reads its whole result.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from catome_bench.measure.contender import Contender
from catome_bench.races.hosts import ImageHost, RotaryHost, twin
from catome_core import TokenGrid


def make_free(host: ImageHost, image: Tensor, scope: str, capacity: float, stack: ExitStack) -> Contender:
    """The block with as many tokens in this scope as merging leaves at this capacity."""
    grid = TokenGrid(tuple(image.shape[2:]))
    slots = grid.destinations + grid.kept(capacity)
    bare = twin(host)
    if scope == "block":
        return Contender(bare, (image.flatten(2)[:, :, :slots, None].contiguous(memory_format=torch.channels_last),))
    attention = bare.block.attn1
    attention.register_forward_pre_hook(partial(_shorten, slots, scope == "keys"), with_kwargs=True)
    if scope == "attention":
        attention.register_forward_hook(lambda module, args, output: output[:, :1].expand(-1, grid.tokens, -1))
    return Contender(bare, (image,))


def make_free_rotary(host: RotaryHost, inputs: tuple[Tensor, ...], slots: int, stack: ExitStack) -> Contender:
    """The whole block on this many tokens."""
    return Contender(twin(host), tuple(part[:, :slots].contiguous() for part in inputs))


def _shorten(slots: int, keys: bool, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # Rows of the first sample may replace those of the second: only so are they contiguous without a copy.
    short = args[0].flatten(0, 1)[: len(args[0]) * slots].unflatten(0, (len(args[0]), slots))
    return (args, kwargs | {"encoder_hidden_states": short}) if keys else ((short, *args[1:]), kwargs)
