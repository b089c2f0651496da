"""The time that merging would save at a site and would cost, from the arithmetic alone: nothing is run or timed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from catome_adapters.arithmetic import SiteWork, count_saved, count_work
from catome_adapters.recipe import MergeRecipe, Scope
from catome_adapters.sites import MergeSite
from catome_core import TokenGrid

USUAL_BATCH = 2
"""One picture with classifier-free guidance: the batch where none is known."""
USUAL_STEPS = 50
USUAL_REMOVED = 0.5
"""Share of the tokens that merges where the data will decide it."""
REUSE_LAUNCHES, MATCH_LAUNCHES = 6, 45
"""Kernels that a call adds when it reuses its pairs, and that matching and planning add to those."""
WORTH = 1 / 4
"""Merging costs fidelity at every level: one that gains less than this share of the best level's gain is left out."""


@dataclass(frozen=True)
class Machine:
    """Rates that a device sustains, to the order of magnitude that a decision needs.

    Attributes:
        flops: FLOP/s of a matrix product.
        attention_flops: FLOP/s of fused attention.
        bandwidth: Bytes/s of copying.
        launch: Seconds that a small operation takes however small it is, without compilation.
    """

    flops: float
    attention_flops: float
    bandwidth: float
    launch: float


MACHINES = {
    "cpu": Machine(flops=1.4e11, attention_flops=1.5e11, bandwidth=3e10, launch=8e-6),
    "cuda": Machine(flops=4e14, attention_flops=3e14, bandwidth=3e12, launch=5e-6),
}
"""Two cores of a server's CPU in float32, and a recent data-centre GPU in bfloat16."""


class Prediction(NamedTuple):
    """What merging does to one call of a site, on average over a run.

    Attributes:
        tokens: Tokens before the merge.
        channels: Of a token.
        saved: Seconds that the shorter sequence saves.
        overhead: Seconds that matching, merging and unmerging take.
        ceiling_50: Speed-up of the whole block if merging half of the tokens were free.
        ceiling_75: The same for three quarters.
    """

    tokens: int
    channels: int
    saved: float
    overhead: float
    ceiling_50: float
    ceiling_75: float

    @property
    def gain(self) -> float:
        """Seconds that merging wins a call; negative if it loses."""
        return self.saved - self.overhead


class LevelGain(NamedTuple):
    """Seconds that all sites of a level save and cost together, a call of the network."""

    saved: float
    overhead: float

    @property
    def gain(self) -> float:
        """Seconds that merging wins; negative if it loses."""
        return self.saved - self.overhead

    def __str__(self) -> str:
        return f"saves {self.saved * 1e3:.2f} ms, costs {self.overhead * 1e3:.2f} ms"


def machine_for(kind: str) -> Machine:
    """The machine of a device type such as "cpu"; every accelerator counts as "cuda"."""
    return MACHINES["cpu" if kind == "cpu" else "cuda"]


def predict(
    work: SiteWork, grid: TokenGrid, batch: int, recipe: MergeRecipe, machine: Machine, *, stepped: bool = True
) -> Prediction:
    """Predict what merging does to one call of a site.

    Only Python numbers: cheap enough for every call, and a constant to a compiler.

    Args:
        work: From `count_work`.
        grid: The layout of the tokens.
        batch: Samples, both halves of guidance counted.
        recipe: Its scope, policy and schedule. Without a fixed capacity half of the tokens is taken to merge.
        machine: From `machine_for`.
        stepped: Whether the recipe's schedule says which calls match; False: every call does.
    """

    def seconds(removed: float, scope: Scope) -> float:
        flops = count_saved(work, grid.tokens, removed, scope)
        return batch * (flops.linear / machine.flops + flops.attention / machine.attention_flops)

    block = seconds(1, "block")
    ceilings = (block / (block - seconds(removed, recipe.scope)) if block else 1.0 for removed in (0.5, 0.75))
    removed = _removed(grid, recipe)
    overhead = _reuse_seconds(work, grid, batch, recipe, machine)
    overhead += (_checkpoint_share(recipe) if stepped else 1) * _match_seconds(work, grid, batch, recipe, machine)
    return Prediction(grid.tokens, work.channels, seconds(removed, recipe.scope), overhead, *ceilings)


def predict_site(
    site: MergeSite, recipe: MergeRecipe, grid: TokenGrid, batch: int = USUAL_BATCH, kind: str = ""
) -> Prediction:
    """Predict for a site on the device where its weights are, or on another `kind`, such as "cuda"."""
    kind = kind or next((weight.device.type for weight in site.attention.parameters()), "cpu")
    return predict(count_work(site), grid, batch, recipe, machine_for(kind), stepped=site.stepped)


def usual_grid(site: MergeSite, recipe: MergeRecipe) -> TokenGrid | None:
    """The layout of a site's tokens at the model's default size; None if the model tells none."""
    return TokenGrid(site.shape, recipe.strides(site.shape), site.prefix) if site.shape else None


def predict_levels(sites: Iterable[MergeSite], recipe: MergeRecipe, kind: str = "") -> dict[int, LevelGain]:
    """What each level would save and cost at the model's default size; empty if the model tells none."""
    sums: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for site in sites:
        grid = usual_grid(site, recipe)
        if grid is None:
            return {}
        prediction = predict_site(site, recipe, grid, kind=kind)
        sums[site.level][0] += prediction.saved
        sums[site.level][1] += prediction.overhead
    return {level: LevelGain(*sums[level]) for level in sorted(sums)}


def winning_levels(gains: Mapping[int, LevelGain]) -> list[int]:
    """The levels that gain, and at least a quarter of what the best one gains.

    Examples:
        >>> winning_levels({1: LevelGain(2.0, 1.0), 2: LevelGain(0.5, 0.1), 4: LevelGain(0.2, 0.1)})
        [1, 2]
        >>> winning_levels({1: LevelGain(1.0, 2.0)})
        []
    """
    enough = WORTH * max((level.gain for level in gains.values()), default=0)
    return [level for level, change in gains.items() if change.gain > 0 and change.gain >= enough]


def attached_levels(sites: Sequence[MergeSite], gains: Mapping[int, LevelGain]) -> list[int]:
    """The levels of `levels="auto"`: the winning ones, else the one with the most tokens."""
    return winning_levels(gains) or [min(site.level for site in sites)]


def _removed(grid: TokenGrid, recipe: MergeRecipe) -> float:
    capacity = recipe.policy.capacity
    most = grid.sources / grid.tokens
    return min(USUAL_REMOVED, most) if capacity is None else most - grid.places(capacity) / grid.tokens


def _checkpoint_share(recipe: MergeRecipe) -> float:
    return len(recipe.schedule.rescaled(USUAL_STEPS).steps) / USUAL_STEPS


def _reuse_seconds(work: SiteWork, grid: TokenGrid, batch: int, recipe: MergeRecipe, machine: Machine) -> float:
    """Reading and writing tokens and slots; telling attention the sizes costs no more than another pass over both."""
    kept = 1 - _removed(grid, recipe)
    passes = {"keys": 1 + kept, "attention": 2 + 2 * kept, "block": 4 + 4 * kept}[recipe.scope]
    passes += 4 * kept * recipe.proportional
    traffic = passes * batch * grid.tokens * work.channels * work.itemsize
    return traffic / machine.bandwidth + REUSE_LAUNCHES * machine.launch


def _match_seconds(work: SiteWork, grid: TokenGrid, batch: int, recipe: MergeRecipe, machine: Machine) -> float:
    """Every source times the destinations that it may see; the similarities are written and read in float32."""
    radius, samples = recipe.policy.radius, 1 if recipe.policy.shared else batch
    seen = grid.destinations if radius is None else prod(min(2 * radius + 1, cells) for cells in grid.cells)
    pairs = samples * grid.sources * seen
    matrix = 2 * pairs * work.channels / machine.flops + 8 * pairs / machine.bandwidth
    return matrix + MATCH_LAUNCHES * machine.launch
