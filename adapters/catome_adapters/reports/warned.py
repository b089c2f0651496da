"""What a run warns of."""

from __future__ import annotations

from collections.abc import Sequence

from catome_adapters.hooks.pairs import MAX_CALLS_PER_STEP
from catome_core import MergeWarning

NO_STEPS = (
    "the denoising step is unknown, so {}; call session.begin_step(step, total) before every call of the model, or "
    "attach to the pipeline"
)
RECOMPUTED = "pairs are recomputed at every call and nothing is saved"
STANDS_STILL = "the lattice stands still, and what its keys miss adds up from step to step"
MANY_CALLS = (
    f"the network is called more than {MAX_CALLS_PER_STEP} times in a step; after that, {{}}. If these are steps of a "
    "loop that does not call scheduler.step, call session.begin_step(step, total) before each; if they are parts of a "
    "picture, name them with begin_step(step, total, context=...), which gives every name pairs of its own; if they "
    "are of another pipeline, whose run follows one that was broken off, call session.reset() in between"
)


class Warned:
    """Warns of everything once."""

    def __init__(self) -> None:
        self._messages: set[str] = set()

    def once(self, message: str) -> None:
        """Warn, unless this was said before."""
        if message not in self._messages:
            self._messages.add(message)
            MergeWarning.warn(message)


def warn_of_idle(idle: Sequence[str]) -> None:
    """Warn of blocks that were never called, while their host was."""
    if idle:
        MergeWarning.warn(
            f"{idle[0]} is attached and its host was called, but its block never was ({len(idle)} such sites): "
            "nothing merges there; pass the block that the model calls"
        )
