"""The handle of a recipe at work on a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

from catome_adapters.architectures.find import NETWORKS
from catome_adapters.architectures.replaced import AttachedNetworks
from catome_adapters.hooks.graphs import RoomForGraphs
from catome_adapters.hooks.host import Host
from catome_adapters.prediction.network import ALL, NetworkPart
from catome_adapters.recipes.calibrated import Recipe
from catome_adapters.recipes.recipe import MergeRecipe
from catome_adapters.reports.summary import SessionSummary
from catome_adapters.run import MergeRun
from catome_adapters.runs import MergeRuns
from catome_adapters.sites.site import MergeSite, SkippedSite
from catome_adapters.steps.sources import observe_steps
from catome_adapters.steps.tracker import StepTracker
from catome_core import MergePlan, checks

_ATTACHED: WeakValueDictionary[int, MergeSession] = WeakValueDictionary()
"""By id, in the order of `attach`; hooks keep them alive, as long as there is the model."""


class MergeSession:
    """A recipe at work on a model; made by `attach`.

    Use it as a context manager, or call `detach` at the end. The steps come from the pipeline's scheduler, or from
    diffusers' cache contexts and guiders. Where there is none of them, call `begin_step` before every call of the
    model: until then every call recomputes its pairs, which is right but saves nothing.

    After `detach` the session is over. What its last run did can still be read.

    Attributes:
        recipe: The recipe.
        sites: The sites that it is attached to.
        skipped: The blocks that it is not attached to, with the reasons.
    """

    def __init__(
        self,
        model_or_pipeline: Any,
        recipe: Recipe,
        sites: Mapping[MergeRecipe, Sequence[MergeSite]],
        skipped: Sequence[SkippedSite],
        part: NetworkPart = ALL,
    ) -> None:
        self.recipe, self.sites, self.skipped = recipe, tuple(chain.from_iterable(sites.values())), tuple(skipped)
        with ExitStack() as undo:
            # Dynamo does not guard on hooks: what was compiled without them would go on without them, unnoticed.
            torch.compiler.reset()
            undo.callback(torch.compiler.reset)
            self._graphs = [RoomForGraphs()] if any(one.policy.adapts or one.later for one in sites) else []
            for graphs in self._graphs:
                undo.callback(graphs.remove)
            runs = [MergeRun(one, where, self._before_call, undo, part) for one, where in sites.items()]
            self._runs = MergeRuns(runs, AttachedNetworks(model_or_pipeline, self.sites))
            self._tracker = StepTracker(self._runs)
            networks = list(dict.fromkeys(site.host for site in self.sites))
            observe_steps(model_or_pipeline, networks, self._tracker, undo)
            for host in chain.from_iterable(run.attachment.hosts for run in runs):
                host.components = self._tracker.components
            undo.callback(self._tracker.finish)
            self._undo = undo.pop_all()
        _ATTACHED[id(self)] = self

    def __enter__(self) -> MergeSession:
        self._expect_attached()
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    def detach(self) -> None:
        """Restore the model and its scheduler exactly; safe to call again. What was compiled is compiled anew."""
        _ATTACHED.pop(id(self), None)
        # Empty from then on. The last one is removed first, each also after an error of another.
        self._undo.close()

    def reset(self) -> None:
        """Forget every plan and the step: the next call begins a run of unknown length.

        Raises:
            RuntimeError: If the session is detached.
        """
        self._expect_attached()
        self._tracker.reset()
        self._runs.forget_settled()

    def begin_step(self, step: int, total: int, *, context: str | None = None) -> None:
        """Say which step comes next, for models without a scheduler that the session can observe.

        Step 0, or one that is not after the last, begins a new run. The first step of a run always recomputes.

        Args:
            step: The step that comes next, from 0.
            total: Number of steps of the run.
            context: Which call of this step comes next, such as "cond", if there are several: each has pairs of its
                own. The same step again in another context goes on; in the same one, it begins a new run.

        Raises:
            TypeError: If a number is not a whole one.
            ValueError: If the step lies outside the run.
            RuntimeError: If the session is detached.
        """
        self._expect_attached()
        total = checks.integer("total", total, "the number of steps of the run, at least 1", least=1)
        step = checks.integer("step", step, f"0 to {total - 1}: steps count from 0", least=0, most=total - 1)
        self._tracker.on_step(step, total, (None, context))

    @property
    def step(self) -> int | None:
        """The present step of the run, from 0; None if it is unknown."""
        return self._tracker.step

    def report(self) -> str:
        """What is attached, what is not, and why, with what merging is predicted to save and cost at each site."""
        return self._runs.report(self.skipped)

    def plans(self) -> dict[str, MergePlan]:
        """Copies of the plans in use, by site; empty before the first call and after the last step of a run."""
        in_use = [(one.name, one.plan_in_use()) for one in self._runs.pairs]
        return {name: plan.clone() for name, plan in in_use if plan is not None}

    def summary(self) -> SessionSummary:
        """Merged fraction, rung, checkpoint and overflow of every site and step of the last run; changes nothing."""
        return self._runs.summarize(self._tracker.step)

    def __repr__(self) -> str:
        sites = len(self.sites)
        scope = self.recipe.scope if isinstance(self.recipe, MergeRecipe) else "calibrated"
        step = f"step={self._tracker.step} of {self._tracker.total}" if id(self) in _ATTACHED else "detached"
        return f"MergeSession({sites} sites, scope={scope!r}, {step})"

    def _expect_attached(self) -> None:
        if id(self) not in _ATTACHED:
            raise RuntimeError(
                "this session is detached, so nothing merges: attach again, with attach(model, session.recipe)"
            )

    def _before_call(self, run: MergeRun, host: Host) -> None:
        for source in self._tracker.sources:
            source.update()
        run.begin_call(host, self._tracker.step)


def sessions(model_or_pipeline: Any) -> list[MergeSession]:
    """The sessions at work on a model, on any part of it, or on any network of a pipeline, in the order of `attach`.

    Args:
        model_or_pipeline: A network, compiled or not, or an object that has networks as attributes.

    Raises:
        TypeError: If there is no network.

    Examples:
        >>> from catome_adapters import attach
        >>> from diffusers import DiTTransformer2DModel
        >>> network = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, num_layers=1, sample_size=16)
        >>> session = attach(network, "paper")
        >>> sessions(network) == [session]
        True
        >>> detach(network)
        >>> sessions(network)
        []
    """
    whole = isinstance(model_or_pipeline, nn.Module)
    held = getattr(model_or_pipeline, "__dict__", {}).values()
    parts = [model_or_pipeline] if whole else [*held, *(getattr(model_or_pipeline, name, None) for name in NETWORKS)]
    networks = [part for part in parts if isinstance(part, nn.Module)]
    if not networks:
        raise TypeError(f"{model_or_pipeline!r} has no network; pass what was passed to attach, or the network itself")
    modules = {module for network in networks for module in network.modules()}
    return [one for one in list(_ATTACHED.values()) if any(site.block in modules for site in one.sites)]


def detach(model_or_pipeline: Any) -> None:
    """End every session at work on a model or pipeline: for where the session itself is out of reach.

    A session that is at work on other networks, too, leaves them all. Where there is none, nothing happens.

    Args:
        model_or_pipeline: As for `sessions`.

    Raises:
        TypeError: If there is no network.
    """
    with ExitStack() as stack:
        for session in sessions(model_or_pipeline):
            stack.callback(session.detach)
