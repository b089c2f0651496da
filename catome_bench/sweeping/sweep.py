"""Drawing the takes of one process, every row in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from catome_adapters import MergeSession
from catome_bench.comparison.drawing import DrawnCall, device_of, draw
from catome_bench.measure.environment import device_name
from catome_bench.measure.rows import describe
from catome_bench.models.artist import unmerged_is_fine
from catome_bench.races.variants import REFERENCE, Variant
from catome_bench.sweeping.store import Store, StoredPicture
from catome_bench.sweeping.tables import AFTER_ANOTHER
from catome_bench.sweeping.takes import Shard, Take

WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Sweep:
    """What to draw, and with which pipeline.

    Attributes:
        pipe: A pipeline without a session.
        calls: Its arguments for each prompt, without the number of steps.
        takes: Those of all processes.
        steps: Denoising steps of the unmerged row.
    """

    pipe: Any
    calls: Sequence[Mapping[str, Any]]
    takes: Sequence[Take]
    steps: int

    def left_out(self, rows: Mapping[str, Variant]) -> dict[str, str]:
        """The rows that this pipeline cannot draw, with the reason.

        Raises:
            TypeError: If it draws no picture at all.
            ValueError: If what it draws is not one picture, or not finite.
        """
        self._draw(REFERENCE, Variant(REFERENCE), self.takes[0], WARM_UP_STEPS)
        reasons = {name: self._reason(variant) for name, variant in rows.items()}
        return {name: reason for name, reason in reasons.items() if reason}

    def draw_shard(self, rows: Mapping[str, Variant], shard: Shard, store: Store, progress: bool) -> None:
        """Draw what is missing of the takes of one process; the rows of a take one right after the other.

        Raises:
            OSError: If a picture cannot be written.
            TypeError: If a call returns no picture.
            ValueError: If what is drawn is not one picture, or not finite.
        """
        due = [(take, name) for take in shard.of(self.takes) for name in store.missing(rows, take)]
        machine = device_name(str(device_of(self.pipe)))
        for name in dict.fromkeys(name for _, name in due):
            self._draw(name, rows[name], self.takes[0], WARM_UP_STEPS)
        for take, name in tqdm(
            due, unit="picture", desc=f"process {shard.rank + 1}/{shard.world}", disable=not progress
        ):
            drawn, merged = self._draw(name, rows[name], take, rows[name].steps(self.steps))
            store.save(name, take, StoredPicture(drawn.pictures[0], drawn.seconds, merged, machine))

    def _reason(self, variant: Variant) -> str:
        """Why a row cannot be drawn; empty if it can. What is wrong with the pipeline itself is raised."""
        peer = variant.family == "peer"
        try:
            with unmerged_is_fine(), variant.apply(self.pipe):
                if peer:
                    self._call(self.takes[0], WARM_UP_STEPS)
        except Exception as error:
            if not peer and not isinstance(error, ValueError):
                raise
            return describe(error)
        return ""

    def _draw(self, name: str, variant: Variant, take: Take, steps: int) -> tuple[DrawnCall, float | None]:
        """What a row draws, and which share merged, where that is counted."""
        try:
            with unmerged_is_fine(), variant.apply(self.pipe) as session:
                if name in AFTER_ANOTHER:
                    self._call(self.takes[self.takes.index(take) - 1], steps)
                drawn = self._call(take, steps)
                return drawn, session.summary().merged_fraction if isinstance(session, MergeSession) else None
        except ValueError as error:
            raise ValueError(f"{name}, prompt {take.prompt}, seed {take.seed}: {error}") from error

    def _call(self, take: Take, steps: int) -> DrawnCall:
        drawn = draw(self.pipe, {**self.calls[take.prompt], "num_inference_steps": steps}, take.seed)
        if len(drawn.pictures) != 1:
            raise ValueError(
                f"a call drew {len(drawn.pictures)} pictures; expected one: videos are compared by compare"
            )
        return drawn
