"""Sequences that several processes share: the grid of each one's tokens, in diffusers' context parallelism."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import nn

from catome_adapters.sites.grid import GridSize, Measure, Shape, grid_size
from catome_adapters.sites.site import MergeSite


@dataclass(frozen=True)
class RankGrid:
    """The grid of one rank's tokens: an equal part of the model's rows, whole frames if they divide.

    Args:
        whole: Computes the grid of the whole sequence.
        ranks: Number of processes that share it.

    Examples:
        >>> RankGrid(lambda arguments: (4, 6), 2)({}).shape, RankGrid(lambda arguments: (5, 4, 6), 2)({}).shape
        ((2, 6), (10, 6))
    """

    whole: Measure
    ranks: int

    def __call__(self, arguments: Mapping[str, Any]) -> GridSize:
        """The same for every rank.

        Raises:
            ValueError: If the rows do not divide, or reference images are split together with the image.
        """
        shape, extra = grid_size(self.whole(arguments))
        if extra:
            raise ValueError(
                f"{self.ranks} ranks split the image together with {extra} tokens of reference images, so that a "
                "rank's tokens are no grid: leave the reference images out, or detach the session"
            )
        return GridSize(self._part(shape), extra=0)

    def _part(self, shape: Shape) -> Shape:
        frames, *plane = shape
        if frames % self.ranks == 0:
            return (frames // self.ranks, *plane)
        rows = prod(shape[:-1])
        if rows % self.ranks:
            raise ValueError(
                f"{' x '.join(map(str, shape))} tokens have {rows} rows, which {self.ranks} ranks cannot share "
                "equally: choose a size whose rows divide, or detach the session"
            )
        return (rows // self.ranks, shape[-1])


def count_ranks(network: nn.Module) -> int:
    """Number of processes that share a sequence in diffusers' `enable_parallelism`; 1 without it."""
    config = getattr(getattr(network, "_parallel_config", None), "context_parallel_config", None)
    return 1 if config is None else config.ring_degree * config.ulysses_degree


def for_ranks(site: MergeSite) -> MergeSite:
    """The site with the grid of this rank's tokens, if its network's sequence is shared."""
    count = count_ranks(site.host)
    return site if count == 1 else replace(site, grid_of=RankGrid(site.grid_of, count))


def _splits_itself(site: MergeSite) -> bool:
    """Whether the block is called with the whole sequence and shards it inside, where hooks cannot see it."""
    registry = vars(site.block).get("_diffusers_hook")
    plans = [getattr(hook, "metadata", None) for hook in getattr(registry, "hooks", {}).values()]
    return any(isinstance(plan, dict) and site.layout.tokens in plan for plan in plans)


def reason_of_ranks(site: MergeSite) -> str | None:
    """Why a site is left out under context parallelism."""
    if not _splits_itself(site):
        return None
    return "context parallelism splits the sequence inside this block, so it is called with tokens of all ranks"
