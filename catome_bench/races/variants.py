"""The ways to draw the same picture in less time that `run_pictures` compares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from catome_adapters import RECIPES, MergeRecipe, MergeSession, attach
from catome_bench.names import Arch
from catome_bench.races.peers import PEERS
from catome_bench.races.step_caches import StepCache, step_caches
from catome_core import AdaptiveMerge, Lattice

REFERENCE = "unmerged"
ON_TOP = "balanced"
"""The recipe on top of step caches."""
SHARES_OF_STEPS = (0.9, 0.8, 0.7, 0.6, 0.5)


class Variant(NamedTuple):
    """One way to draw a picture.

    Attributes:
        family: "unmerged", "ours", "peer", "fewer steps", "step cache", or "on top": ours on top of a step cache.
        apply: Context manager that changes a pipeline while its context lasts.
        share: Share of the steps that are run.
    """

    family: str
    apply: Callable[[Any], AbstractContextManager[Any]] = nullcontext
    share: float = 1.0

    def steps(self, total: int) -> int:
        """The number of steps it runs where the reference runs `total`."""
        return max(1, round(self.share * total))


def fixed_share(removed: float, radius: int | None = None, **changes: Any) -> MergeRecipe:
    """A recipe that always removes this share of the top level's tokens, with the default's schedule.

    Args:
        removed: Share of the tokens, at most 0.75.
        radius: Match only cells within it; None: all.
        changes: Other fields of the recipe.
    """
    policy = AdaptiveMerge(threshold=-1, capacity=0.75 - removed, radius=radius, spare="fill")
    return replace(RECIPES["adaptive"], policy=policy, levels=(1,), **changes)


def lattice(stride: int | tuple[int, int], **options: Any) -> MergeRecipe:
    """A recipe with keys on a lattice of the top level's tokens.

    Args:
        stride: Size of the cells, of which attention sees one token each.
        options: Of the `Lattice`.
    """
    return MergeRecipe(Lattice(**options), scope="keys", stride=stride, levels=(1,))


def lattices(arch: Arch) -> dict[str, MergeRecipe]:
    """Lattices by the share of the keys that they leave; on a DiT, also with 0, 1 or 2 cells near around every tile."""
    near = {f"1/{side**2} lattice, near {near}": lattice(side, near=near) for side in (2, 4) for near in (0, 1, 2)}
    return {
        "1/2 lattice": lattice((1, 2)),
        "1/4 lattice": lattice(2),
        "1/4 lattice, still": lattice(2, moving=False),
        "1/8 lattice": lattice((2, 4)),
        "1/16 lattice": lattice(4),
        **({} if arch == "unet" else near),
    }


def from_the_start(arch: Arch) -> dict[str, MergeRecipe]:
    """Recipes that leave the first steps of a DiT alone, in which the picture is laid out; here they merge in all."""
    names = () if arch == "unet" else ("close", "balanced", "fast")
    return {f"{name}, all steps": replace(RECIPES[name], during=(0.0, 1.0)) for name in names}


def with_equal_cells() -> dict[str, MergeRecipe]:
    """Recipes whose cells grow after the first steps; here they are large from the beginning."""
    growing = {name: RECIPES[name] for name in ("balanced", "fast")}
    return {f"{name}, equal cells": replace(one, stride=one.later[-1][1], later=()) for name, one in growing.items()}


def recipes(arch: Arch) -> dict[str, MergeRecipe]:
    """Our recipes by name; only a DiT has consecutive blocks, for which segments make a difference."""
    joined = {} if arch == "unet" else {"50 % block, joined": fixed_share(0.5, scope="block", segment=7)}
    adaptive = RECIPES["adaptive"]
    return {
        **{name: RECIPES[name] for name in ("close", "balanced", "fast", "adaptive", "keys", "paper", "todo")},
        **lattices(arch),
        **from_the_start(arch),
        **with_equal_cells(),
        "own cell": replace(adaptive, policy=AdaptiveMerge(radius=0, spare="fill")),
        "25 %": fixed_share(0.25),
        "50 %": fixed_share(0.5),
        "75 %": fixed_share(0.75),
        "50 % keys": fixed_share(0.5, scope="keys"),
        "75 % keys": fixed_share(0.75, scope="keys"),
        "50 % own cell": fixed_share(0.5, radius=0),
        "50 % by output": fixed_share(0.5, metric="output"),
        "50 % plain": fixed_share(0.5, proportional=False),
        "50 % keys plain": fixed_share(0.5, scope="keys", proportional=False),
        "25 % block": fixed_share(0.25, scope="block"),
        "50 % block": fixed_share(0.5, scope="block"),
        "50 % block plain": fixed_share(0.5, scope="block", proportional=False),
        **joined,
    }


def variants(total: int, arch: Arch = "unet") -> dict[str, Variant]:
    """Every variant of a run of `total` steps, by name."""
    ours = {name: Variant("ours", partial(attach, recipe=recipe)) for name, recipe in recipes(arch).items()}
    peers = {name: Variant("peer", peer) for name, peer in PEERS.items()}
    shorter = [Variant("fewer steps", share=share) for share in SHARES_OF_STEPS]
    fewer = {f"{one.steps(total)} steps": one for one in shorter if one.steps(total) < total}
    caches = step_caches(arch, total)
    alone = {name: Variant("step cache", cache) for name, cache in caches.items()}
    on_top = {f"{name} + {ON_TOP}": Variant("on top", partial(_on_top, cache)) for name, cache in caches.items()}
    return {REFERENCE: Variant("unmerged"), **ours, **peers, **fewer, **alone, **on_top}


@contextmanager
def _on_top(cache: StepCache, pipeline: Any) -> Iterator[MergeSession]:
    with cache(pipeline), attach(pipeline, ON_TOP) as session:
        yield session
