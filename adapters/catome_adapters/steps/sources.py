"""Everything that steps are taken from, besides `MergeSession.begin_step`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn

from catome_adapters.steps.context import ContextSource
from catome_adapters.steps.forcing import ForcingSource
from catome_adapters.steps.guider import GuiderSource
from catome_adapters.steps.scheduler import SchedulerSource
from catome_adapters.steps.tracker import StepSource, StepTracker

SOURCES: list[Callable[[Any, Sequence[nn.Module], StepTracker], StepSource]] = [
    SchedulerSource,
    # Before contexts: it begins the step that the context belongs to.
    ForcingSource,
    ContextSource,
    GuiderSource,
]
"""Each is made from the model or pipeline, its networks, and the tracker to notify. Add a class to add a source."""


def observe_steps(model_or_pipeline: Any, networks: Sequence[nn.Module], tracker: StepTracker, undo: ExitStack) -> None:
    """Notify the tracker of every source that there is; `undo` gets what stops each of them."""
    for source in SOURCES:
        tracker.sources.append(source(model_or_pipeline, networks, tracker))
        undo.callback(tracker.sources[-1].remove)
    tracker.components = [component for source in tracker.sources for component in source.components]
