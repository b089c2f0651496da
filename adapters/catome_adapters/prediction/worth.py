"""Whether merging is worth its cost: when a size is new, and again when it is known how much merges."""

from __future__ import annotations

from catome_adapters.hooks.scopes import SCOPES
from catome_adapters.prediction.network import NetworkPart
from catome_adapters.prediction.rates import rates_for
from catome_adapters.prediction.seconds import SiteSeconds, site_seconds
from catome_adapters.prediction.shares import assumed_share, checkpoint_share, share_at
from catome_adapters.recipes.recipe import MergeRecipe
from catome_adapters.records import SitePlan
from catome_adapters.sites.weights import SiteWeights
from catome_core import PlanKey

MIN_GAIN = 0.03
"""Merging costs fidelity: `levels="auto"` leaves alone what gains less than this share of the network's time."""
TRIAL_SHARE = 0.01
"""Share of the time of a run so far that may be spent on matching again what lost before."""
FIRST_TRIAL_SHARE, FIRST_TRIAL_ODDS = 0.02, 10
"""The first checkpoint may find nothing: it costs less than this share of the run, or a tenth of what it may gain."""


class Worth:
    """Whether merging is worth its cost at the sites of a session.

    With levels by number, or "all", it is: merging was asked for at any size. "top" asks that no time is lost; "auto",
    that every site gains at least 3 % of its part of the network's time.

    Args:
        recipe: The recipe.
        part: Of the attached blocks in the networks.
        denoises: Whether the recipe's schedule says which calls match.

    Attributes:
        total: Number of steps of the run; None if it is unknown.
    """

    def __init__(self, recipe: MergeRecipe, part: NetworkPart, denoises: bool) -> None:
        self.recipe, self.part, self.denoises = recipe, part, denoises
        self.is_asked = recipe.levels in ("auto", "top") and SCOPES[recipe.scope].predictable
        self.min_gain = MIN_GAIN if recipe.levels == "auto" else 0.0
        self.total: int | None = None
        self._known: dict[tuple[SiteWeights, PlanKey], bool] = {}

    def begin_run(self, total: int | None) -> None:
        """A run of `total` steps begins."""
        self.total = total
        self._known.clear()

    def pays_off(self, weights: SiteWeights, key: PlanKey, compiled: bool) -> bool:
        """Whether to merge such tokens in this run; in compiled code, whose constants hold for runs of every length."""
        if compiled:
            return self.at_size(weights, key, None, compiled=True)
        # The blocks of a transformer are alike.
        if (weights, key) not in self._known:
            self._known[weights, key] = self.at_size(weights, key, self.total)
        return self._known[weights, key]

    def at_size(self, weights: SiteWeights, key: PlanKey, total: int | None, *, compiled: bool = False) -> bool:
        """Whether merging the share that is assumed of such tokens gains time; a run of usual length, if it is None."""
        if not self.is_asked:
            return True
        seconds = self.seconds(weights, key, assumed_share(key.grid, self.recipe), compiled)
        if total is None:
            return self._gains(seconds, checkpoint_share(self.recipe) if self.denoises else 1.0)
        matches = checkpoint_share(self.recipe, total)
        return self._gains(seconds, matches) and self._can_try(seconds, matches, total)

    def at_capacity(
        self, weights: SiteWeights, key: PlanKey, capacity: float | None, matches: float, compiled: bool
    ) -> bool:
        """After a checkpoint, when the capacity is known, and the share of the steps left that recompute pairs."""
        removed = share_at(key.grid, capacity)
        return not self.is_asked or self._gains(self.seconds(weights, key, removed, compiled), matches)

    def seconds(self, weights: SiteWeights, key: PlanKey, removed: float, compiled: bool) -> SiteSeconds:
        """Of one call in which this share of the tokens merges."""
        rates = rates_for(key.device, compiled=compiled)
        if rates.runs_ahead:
            weights = weights._replace(operations=max(weights.operations, self.part.operations.get(weights, 0)))
        return site_seconds(weights, key.grid, key.batch, self.recipe, rates, removed)

    def outcome(
        self, weights: SiteWeights, plan: SitePlan, checkpoint: bool, blocks: int, compiled: bool
    ) -> tuple[float, float]:
        """Seconds of the network that are the part of these blocks, without merging, and what this plan gains of them.

        Both are 0 where the figures of a block do not say what merging gains.
        """
        if plan.key is None or not SCOPES[self.recipe.scope].predictable:
            return 0.0, 0.0
        seconds = self.seconds(weights, plan.key, share_at(plan.key.grid, plan.capacity), compiled)
        gain = blocks * seconds.saved - seconds.reuse if plan.merges else 0.0
        gain -= seconds.match if checkpoint and plan.merged else 0.0
        return blocks * seconds.block / self.part.share, gain

    def _can_try(self, seconds: SiteSeconds, matches: float, total: int) -> bool:
        """Whether a first checkpoint that finds nothing would cost little of the run, or of what it may gain."""
        if not self.recipe.policy.adapts:
            return True
        trial, call = seconds.trial, seconds.block / self.part.share
        gain = (total - 1) * seconds.gain(matches)
        return trial <= FIRST_TRIAL_SHARE * total * call or FIRST_TRIAL_ODDS * trial <= gain

    def _gains(self, seconds: SiteSeconds, matches: float) -> bool:
        gain = seconds.gain(matches)
        return gain > 0 and gain * self.part.share >= self.min_gain * seconds.block


class Trial:
    """One segment's decisions in a run: whether it is left unmerged for now, since too few of its tokens merge.

    How many merge is known after a checkpoint. They are few in the noise of the first steps and more later, so what
    loses is matched again at later checkpoints, as long as all that is lost this way stays below a hundredth of the
    time of the run so far.

    Attributes:
        loses: Whether the last checkpoint found too few tokens to gain.
    """

    def __init__(self, worth: Worth, weights: SiteWeights) -> None:
        self.worth, self.weights = worth, weights
        self.loses, self._cost, self._spent, self._call = False, 0.0, 0.0, 0.0

    def leaves_unmerged(self, step: int, checkpoint: bool) -> bool:
        """Whether step `step`, from 0, does not merge."""
        affordable = self._spent + self._cost <= TRIAL_SHARE * (step + 1) * self._call
        return self.loses and not (checkpoint and affordable)

    def decide(self, key: PlanKey, capacity: float | None, matches: float, compiled: bool) -> None:
        """After a checkpoint: the capacity that it led to, and the share of the steps left that recompute pairs."""
        self.loses = not self.worth.at_capacity(self.weights, key, capacity, matches, compiled)
        if self.loses:
            seconds = self.worth.seconds(self.weights, key, 0.0, compiled)
            self._cost, self._call = seconds.trial, seconds.block / self.worth.part.share
            self._spent += self._cost
