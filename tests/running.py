"""Recipes, calls, runs and comparisons, the same for every model of the zoo."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import fields, replace
from functools import partial
from itertools import product
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from catome_adapters import RECIPES, MergeRecipe, attach
from catome_core import AdaptiveMerge, CheckpointSchedule, Lattice, TokenGrid

TOTAL = 6
ONCE = CheckpointSchedule((0,), of=TOTAL)
TWICE = CheckpointSchedule((0, 3), of=TOTAL)
SCOPES, METRICS = ("attention", "keys", "block"), ("input", "output")
Variant = dict[str, Any]


def vary(scope: str, metric: str, segment: int) -> Variant:
    return {"scope": scope, "metric": metric, "segment": segment}


def spell(variant: Variant) -> str:
    return "-".join(map(str, variant.values()))


VARIANTS = [vary(scope, metric, 1) for scope, metric in product(SCOPES, METRICS)]
VARIANTS += [vary("block", metric, segment) for metric, segment in product(METRICS, (2, 3))]


def make_recipe(scope: str = "attention", policy: type[AdaptiveMerge] = AdaptiveMerge, **options: Any) -> MergeRecipe:
    """A recipe at all levels; `options` are those of the recipe and of its policy.

    By default half of the pairs of random tokens are above the threshold, which is more than a quarter has room for.
    """
    options = {"threshold": 0.0, "capacity": 0.25, "schedule": TWICE, "levels": "all"} | options
    return recipe_of(policy, scope, options)


def lattice_recipe(**options: Any) -> MergeRecipe:
    """Keys on a lattice at all levels; `options` are those of the recipe and of its policy."""
    return recipe_of(Lattice, "keys", {"levels": "all"} | options)


def recipe_of(policy: type[AdaptiveMerge | Lattice], scope: str, options: dict[str, Any]) -> MergeRecipe:
    of_policy = {field.name: options.pop(field.name) for field in fields(policy) if field.name in options}
    return MergeRecipe(policy(**of_policy), scope=scope, **options)


unet_recipe = partial(make_recipe, threshold=0.7)
"""The same for UNets, whose tokens are more alike."""

vit_recipe = partial(make_recipe, threshold=0.3, spare="fill")
"""The same for vision transformers, where about half of the pairs are above this threshold."""


def progressive_recipe(capacity: float, **options: Any) -> MergeRecipe:
    """For vision transformers: every block leaves this share of its tokens beside the destinations."""
    return replace(RECIPES["tome"], policy=AdaptiveMerge(threshold=-1, capacity=capacity, spare="fill"), **options)


def maskless_recipe(scope: str = "attention") -> MergeRecipe:
    """Attention needs no mask: no size counts, and no slot is empty."""
    return make_recipe(scope, proportional=False, spare="fill")


def call(model: Any, network: nn.Module, session: Any, step: int = 0, *, total: int = TOTAL, **options: Any) -> Tensor:
    """One call at a step; by default the sample is the same at every step."""
    session.begin_step(step, total)
    return model.call(network, **options)


def run(
    model: Any,
    network: Any,
    session: Any = None,
    *,
    steps: Iterable[int] | None = None,
    total: int = TOTAL,
    **options: Any,
) -> list[Tensor]:
    """A prediction for every step, or for these, each of another sample; in a cache context, as pipelines do it."""
    predictions = []
    for step in range(total) if steps is None else steps:
        if session is not None:
            session.begin_step(step, total)
        with network.cache_context("run") if hasattr(network, "cache_context") else nullcontext():
            predictions.append(model.call(network, **{"seed": step} | options))
    return predictions


def square_grid(tokens: int) -> TokenGrid:
    return TokenGrid((isqrt(tokens),) * 2)


def run_merged(model: Any, network: nn.Module, recipe: MergeRecipe, **options: Any) -> list[Tensor]:
    with attach(network, recipe) as session:
        return run(model, network, session, **options)


def assert_same(ours: Any, theirs: Any, tolerance: float = 0, *, check_dtype: bool = True) -> None:
    """Bit by bit, or with a tolerance that is relative and absolute."""
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, check_dtype=check_dtype)


def assert_close(ours: Any, theirs: Any) -> None:
    """Up to the rounding of float32 when sums are taken in another order."""
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def differing_steps(ours: list[Tensor], theirs: list[Tensor]) -> list[int]:
    """The steps at which anything differs, be it a bit."""
    return [step for step, pair in enumerate(zip(ours, theirs, strict=True)) if not torch.equal(*pair)]


def all_differ(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Whether every step differs by more than rounding."""
    return not any(torch.allclose(*pair, rtol=1e-3, atol=1e-4) for pair in zip(ours, theirs, strict=True))
