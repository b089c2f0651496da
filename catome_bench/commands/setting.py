"""The options that every measurement of one `catome bench` shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from catome_bench.commands.suites import Suite
from catome_bench.measure.contender import MakeContender
from catome_bench.races import blocks
from catome_bench.races.contenders import block_contenders


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The options that every measurement of a command shares.

    Attributes:
        suite: The defaults.
        device: Torch device.
        repeats: Timed rounds.
        subjects: Names of contenders or variants; all, if there are none.
        pictures: Arguments of `run_pictures`, of which "never-slower" takes the size and the lengths of the runs.
    """

    suite: Suite
    device: str
    repeats: int
    subjects: tuple[str, ...] = ()
    pictures: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def options(self) -> dict[str, Any]:
        """Keyword arguments for the races that make their own tensors."""
        return {"repeats": self.repeats, "device": self.device, "dtype": self.suite.dtype}

    def contenders(self, case: str, mode: str) -> dict[str, MakeContender]:
        """The contenders of a race over a block."""
        every = block_contenders(blocks.CASES[case], self.device, self.suite.dtype)
        headlines = every if mode == "eager" or self.suite.compiled is None else self.suite.compiled
        return self.only({name: make for name, make in every.items() if self.subjects or name in headlines})

    def only(self, contenders: dict[str, MakeContender]) -> dict[str, MakeContender]:
        """Those that are asked for, beside the unpatched.

        Raises:
            ValueError: If there is none of this name.
        """
        unknown = [name for name in self.subjects if name not in contenders]
        if unknown:
            raise ValueError(f"subject is {unknown[0]!r}; expected one of {list(contenders)}")
        chosen = {"unpatched", *(self.subjects or contenders)}
        return {name: make for name, make in contenders.items() if name in chosen}
