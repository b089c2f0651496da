"""Contenders of a race over one block: the block itself, the best that merging could reach, ours, and the peers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import count, product
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from catome_adapters import MergeRecipe, MergeSession, MergeSite, attach
from catome_adapters.architectures.transformer import layout_of
from catome_adapters.architectures.unet import LAYOUT
from catome_bench.measure.contender import Contender, MakeContender, Phases
from catome_bench.races.blocks import Case
from catome_bench.races.free import make_free, make_free_rotary
from catome_bench.races.hosts import Host, ImageHost, RotaryHost, twin
from catome_bench.races.peers import PEERS
from catome_core import AdaptiveMerge, CheckpointSchedule, Lattice, TokenGrid, match_tokens

CAPACITY_FOR_HALF = 0.25
"""Slots kept beside the destinations, which are a quarter of the tokens: half of the tokens are left."""

STEPS = 2000
SCOPES: tuple[str, ...] = ("attention", "keys", "block")
LATTICES = {"lattice": (Lattice(), 2), "lattice, near": (Lattice(near=1), 4)}
"""Lattices of keys by name, each with its stride: a quarter of the keys, or a sixteenth beside all those near."""


class Entry(NamedTuple):
    """One of our recipes in a race.

    Attributes:
        recipe: The recipe.
        phases: Makes the kinds of step of its session.
    """

    recipe: MergeRecipe
    phases: Callable[[MergeSession], Phases]


def fixed_policy(capacity: float = CAPACITY_FOR_HALF) -> AdaptiveMerge:
    """A policy that leaves a fixed number of tokens, without padding."""
    return AdaptiveMerge(threshold=-1, capacity=capacity, spare="fill")


def block_contenders(case: Case, device: str, dtype: torch.dtype) -> dict[str, MakeContender]:
    """Every contender that can run this block, by name."""
    host, inputs = case.host(device, dtype), case.inputs(device, dtype)
    if isinstance(host, RotaryHost):
        # A cell is two by two tokens of one frame, so that destinations are a quarter of the tokens of a video, too.
        return _rotary_contenders(host, inputs, TokenGrid(case.grid, (1, 2, 2)[-len(case.grid) :]))
    free = {f"free {scope}": partial(make_free, host, inputs[0], scope, CAPACITY_FOR_HALF) for scope in SCOPES}
    free |= {"free lattice": partial(make_free, host, inputs[0], "keys", 0.0)}
    ours = _our_contenders(host, inputs, {scope: f"free {scope}" for scope in SCOPES} | {"lattice": "free lattice"})
    peers = {name: partial(_make_peer, host, inputs[0], name) for name in PEERS}
    return {"unpatched": partial(_make_unpatched, host, inputs)} | free | ours | peers


def _rotary_contenders(host: RotaryHost, inputs: tuple[Tensor, ...], grid: TokenGrid) -> dict[str, MakeContender]:
    slots = grid.destinations + grid.kept(CAPACITY_FOR_HALF)
    free = {"free block": partial(make_free_rotary, host, inputs, slots)}
    ours = _our_contenders(host, inputs, {"block": "free block"}, grid.shape)
    return {"unpatched": partial(_make_unpatched, host, inputs)} | free | ours


def _our_contenders(
    host: Host, inputs: tuple[Tensor, ...], free: dict[str, str], shape: tuple[int, ...] | None = None
) -> dict[str, MakeContender]:
    return {
        name: partial(_make_ours, host, inputs, one, free.get(name.removesuffix(", proportional")), shape)
        for name, one in our_entries().items()
    }


def our_entries() -> dict[str, Entry]:
    """Half of the tokens merged, in every scope, plain and proportional; and lattices of keys."""
    merging = {
        name_ours(*one): Entry(fixed_recipe(CAPACITY_FOR_HALF, *one), session_phases)
        for one in product(SCOPES, (False, True))
    }
    return merging | {name: Entry(lattice_recipe(*one), lattice_phases) for name, one in LATTICES.items()}


def rung_contenders(case: Case, ladder: tuple[float, ...], device: str, dtype: torch.dtype) -> dict[str, MakeContender]:
    """Proportional attention at every capacity of a ladder, each with the best that it could reach."""
    host, inputs = case.host(device, dtype), case.inputs(device, dtype)
    assert isinstance(host, ImageHost)
    contenders: dict[str, MakeContender] = {"unpatched": partial(_make_unpatched, host, inputs)}
    for rung in ladder:
        free, one = f"free at {rung:g}", Entry(fixed_recipe(rung, "attention", proportional=True), session_phases)
        contenders[free] = partial(make_free, host, inputs[0], "attention", rung)
        contenders[f"capacity {rung:g}"] = partial(_make_ours, host, inputs, one, free, None)
    return contenders


def name_ours(scope: str, proportional: bool) -> str:
    """Name of our contender in the tables."""
    return f"{scope}, proportional" if proportional else scope


def fixed_recipe(capacity: float, scope: str, proportional: bool) -> MergeRecipe:
    """A recipe with a fixed number of tokens and a checkpoint at every second step."""
    schedule = CheckpointSchedule.every(2, STEPS)
    # All levels: merge whether or not it is predicted to gain.
    return MergeRecipe(fixed_policy(capacity), schedule, scope, proportional, levels="all")


def lattice_recipe(lattice: Lattice, stride: int) -> MergeRecipe:
    """Keys on a lattice at all levels, whether or not it is predicted to gain."""
    return MergeRecipe(lattice, scope="keys", stride=stride, levels="all")


def lattice_phases(session: MergeSession) -> Phases:
    """The steps of a lattice, which are all alike: each moves it."""
    steps = count()
    return {"every step": lambda: session.begin_step(next(steps) % STEPS, STEPS)}


def session_phases(session: MergeSession) -> Phases:
    """Checkpoint and reuse, in any order, of a session whose checkpoints are the even steps."""
    step = -1

    def begin(remainder: int) -> None:
        nonlocal step
        step += 1
        if step % 2 != remainder:
            step += 1
        session.begin_step(step, STEPS)

    return {"checkpoint": partial(begin, 0), "reuse": partial(begin, 1)}


def half_threshold(image: Tensor) -> float:
    """The threshold at which half of all tokens merge: two thirds of the sources are above it."""
    tokens = rearrange(image, "b c h w -> b (h w) c")
    return match_tokens(tokens, TokenGrid(image.shape[2:])).score.quantile(1 / 3).item()


def _make_unpatched(host: Host, inputs: tuple[Tensor, ...], stack: ExitStack) -> Contender:
    return Contender(twin(host), inputs)


def _make_ours(
    host: Host,
    inputs: tuple[Tensor, ...],
    one: Entry,
    free: str | None,
    shape: tuple[int, ...] | None,
    stack: ExitStack,
) -> Contender:
    patched = twin(host)
    session = stack.enter_context(attach(patched, one.recipe, sites=[_site(patched, shape)]))
    return Contender(patched, inputs, one.phases(session), free)


def _make_peer(host: ImageHost, image: Tensor, name: str, stack: ExitStack) -> Contender:
    patched = twin(host)
    options = {"threshold": half_threshold(image)} if name == "ca-tome" else {}
    steps = stack.enter_context(PEERS[name](patched, **options))
    if steps is None:
        return Contender(patched, (image,))
    # Steps 8 and 9 in its own count, of which the first is one of its checkpoints.
    phases = {"checkpoint": partial(steps.begin_step, 7, 50), "reuse": partial(steps.begin_step, 8, 50)}
    return Contender(patched, (image,), phases)


def _site(host: Host, shape: tuple[int, ...] | None) -> MergeSite:
    """The host's one block; the grid is `shape`, or that of the image an `ImageHost` is called with."""
    if isinstance(host, ImageHost):
        return MergeSite("block", host.block, host.block.attn1, host, layout=LAYOUT)
    layout = layout_of(host.block)
    assert not isinstance(layout, str), layout
    assert shape is not None, "a host that is not called with an image needs the shape of its grid"
    attention = getattr(host.block, "attn1", None) or getattr(host.block, "attn", None)
    assert attention is not None, f"{type(host.block).__name__} has no self-attention"
    return MergeSite("block", host.block, attention, host, grid_of=lambda arguments: shape, layout=layout)
