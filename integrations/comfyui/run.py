"""One sampling run: which step it is, and what it does to the tokens of a self-attention."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Container, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from catome_adapters import MergeRecipe
from catome_core import Lattice, MergePlan, TokenGrid, gather_anchors, merge, unmerge

from .memories import LatticeMemory, Memory, PairMemory
from .settings import Settings

PLANS = "catome_plans"
"""Where the patch before a self-attention tells the one after it what has merged."""


class Run:
    """The state of one sampling run, which nothing outlives.

    Args:
        settings: The inputs of the node.
        sigmas: Of the run: one for each step, and the one it ends with.
        sampling: The host's `model_sampling`, which turns percents into sigmas.

    Attributes:
        merging: Whether the network is evaluated in the part of the sampling in which tokens merge.
    """

    def __init__(self, settings: Settings, sigmas: Sequence[float], sampling: Any) -> None:
        self.settings, self.sigmas = settings, sigmas[:-1]
        self.first = sampling.percent_to_sigma(settings.start_percent)
        self.last = sampling.percent_to_sigma(settings.end_percent)
        self.checkpoints = {*settings.recipe.schedule.rescaled(max(len(self.sigmas), 1)).steps}
        self.memory, self.merge_values = _by_policy(settings.recipe)
        self.step, self.merging, self.replaced = -1, False, ()
        self.blocks: dict[Any, int] = {}
        self.calls: Counter[Hashable] = Counter()
        self.sizes: dict[int, bool] = {}
        self.looked = False

    def begin(self, sigma: float, replaced: Container[Any] = ()) -> None:
        """Before the network is evaluated at this sigma, which belongs to the nearest step.

        Attention that other nodes have `replaced`, by its block, may need all tokens, and is left alone.
        """
        step = min(range(len(self.sigmas)), key=lambda index: abs(self.sigmas[index] - sigma))
        if step != self.step:
            self.look()
            # Some samplers leave steps out.
            passed = range(min(self.step + 1, step), step + 1)
            self.memory.begin_step(step, not self.checkpoints.isdisjoint(passed))
            self.step = step
        self.merging = self.last < sigma <= self.first
        self.replaced = replaced
        self.calls.clear()

    def look(self) -> None:
        """After the first step in which tokens should merge: a warning, if none could."""
        if self.looked or not self.merging:
            return
        self.looked = True
        if not any(self.sizes.values()):
            logging.getLogger("catome").warning(
                "CA-ToMe merges nothing: no self-attention has a grid of %d tokens or more; found %s. "
                "Lower min_tokens, draw a larger picture, or remove the node.",
                self.settings.min_tokens,
                sorted(self.sizes) or "none that calls ComfyUI's patches",
            )

    def merge(self, q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """What self-attention projects to queries, keys and values, each (batch, tokens, channels), with fewer tokens.

        `extra` are the host's `extra_options`.
        """
        place = *extra["block"], extra["block_index"]
        block = self.blocks.setdefault(place, len(self.blocks))
        grid = self._grid(q, k, v, extra)
        if grid is None or place in self.replaced or place[:2] in self.replaced:
            return q, k, v
        conds = [self._numbered(block, *cond) for cond in zip(extra["uuids"], extra["cond_or_uncond"], strict=True)]
        plans = self.memory.plans(block, k, grid, conds)
        if not plans:
            return q, k, v
        if self.settings.recipe.scope == "keys":
            return q, in_parts(gather_anchors, k, plans), in_parts(self.merge_values, v, plans)
        extra[PLANS] = plans
        merged = in_parts(merge, k, plans)
        q, v = (merged if one is k else in_parts(merge, one, plans) for one in (q, v))
        return q, merged, v

    def _numbered(self, block: int, *cond: Hashable) -> Hashable:
        """The cond with the number of this call in the evaluation, since other nodes may draw it tile by tile."""
        self.calls[block, cond] += 1
        return *cond, self.calls[block, cond]

    def _grid(self, q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> TokenGrid | None:
        """The layout of the tokens; None if they are few, or if another patch has changed them."""
        shape = tuple(extra.get("activations_shape", ())[2:])
        tokens = q.shape[1]
        enough = tokens >= self.settings.min_tokens
        on_grid = len(shape) == 2 and shape[0] * shape[1] == tokens and q.shape == k.shape == v.shape
        self.sizes[tokens] = self.sizes.get(tokens, False) or (enough and on_grid)
        if not (enough and on_grid):
            return None
        recipe = self.settings.recipe
        return TokenGrid(shape, recipe.strides(shape, recipe.part_at(self.step, len(self.sigmas))))


def restore(merged: Tensor, extra: dict[str, Any]) -> Tensor:
    """The result of self-attention with a row for every token again."""
    plans = extra.pop(PLANS, None)
    return merged if plans is None else in_parts(unmerge, merged, plans)


def in_parts(function: Callable[[Tensor, MergePlan], Tensor], rows: Tensor, plans: list[MergePlan]) -> Tensor:
    """Each plan applied to its part of the batch."""
    if len(plans) == 1:
        return function(rows, plans[0])
    parts = rows.chunk(len(plans))
    return torch.cat([function(part, plan) for part, plan in zip(parts, plans, strict=True)])


def _by_policy(recipe: MergeRecipe) -> tuple[Memory, Callable[[Tensor, MergePlan], Tensor]]:
    """What blocks remember, and what the values of merged keys are."""
    if isinstance(recipe.policy, Lattice):
        return LatticeMemory(recipe.policy, recipe.seed), gather_anchors
    return PairMemory(recipe.policy, recipe.seed), merge
