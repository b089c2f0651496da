"""Sequences that several processes share: the grid of each one's tokens, in diffusers' context parallelism."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import nn

from catome_adapters.grids import Measure, Shape
from catome_adapters.sites import MergeSite


@dataclass(frozen=True)
class RankGrid:
    """The grid of one rank's tokens: an equal part of the model's rows, whole frames if they divide.

    Args:
        measure: Tells the grid of the whole sequence.
        ranks: Processes that share it.

    Examples:
        >>> RankGrid(lambda arguments: (4, 6), 2)({}), RankGrid(lambda arguments: (5, 4, 6), 2)({})
        ((2, 6), (10, 6))
    """

    measure: Measure
    ranks: int

    def __call__(self, arguments: Mapping[str, Any]) -> Shape:
        """Of every rank alike.

        Raises:
            ValueError: If the rows do not divide.
        """
        shape = self.measure(arguments)
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


def ranks(network: nn.Module) -> int:
    """Processes that share a sequence in diffusers' `enable_parallelism`; 1 without it."""
    config = getattr(getattr(network, "_parallel_config", None), "context_parallel_config", None)
    return 1 if config is None else config.ring_degree * config.ulysses_degree


def for_ranks(site: MergeSite) -> MergeSite:
    """The site with the grid of this rank's tokens, if its network's sequence is shared."""
    count = ranks(site.host)
    return site if count == 1 else replace(site, measure=RankGrid(site.measure, count))


def splits_itself(site: MergeSite) -> bool:
    """Whether the block is called with the whole sequence, and takes its rank's part inside, where no hook sees it."""
    registry = vars(site.block).get("_diffusers_hook")
    plans = [getattr(hook, "metadata", None) for hook in getattr(registry, "hooks", {}).values()]
    return any(isinstance(plan, dict) and site.layout.tokens in plan for plan in plans)
