"""What to merge, where and when, as one value that travels as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Literal

from catome_core import PAPER_SCHEDULES, AdaptiveMerge, CheckpointSchedule, TokenGrid

Scope = Literal["attention", "keys", "block"]
SCOPES = ("attention", "keys", "block")


@dataclass(frozen=True)
class MergeRecipe:
    """Everything that `attach` needs to know.

    Args:
        policy: How tokens are matched and merged. With `policy.capacity=None` the session moves the capacity along
            a ladder after every checkpoint, to the shortest sequence at which nothing overflows; a number fixes it.
        schedule: The steps that recompute the pairs.
        scope: "attention" merges around self-attention (paper), "keys" merges only its keys and values, "block"
            runs the whole transformer block on merged tokens.
        proportional: Attention weighs every key by the number of tokens it stands for.
        levels: "auto" takes the level with the most tokens (paper: D1 and U1), "all" every level, a tuple the levels
            named by their downsampling factor, such as (1, 2).
        stride: Cell size of the grid; one destination per cell.
        seed: Of the destinations of `policy.destination="random"`.

    Raises:
        ValueError: If a value is out of range.

    Examples:
        >>> recipe = MergeRecipe(AdaptiveMerge(threshold=0.8), scope="block")
        >>> MergeRecipe.from_json(recipe.to_json()) == recipe
        True
    """

    policy: AdaptiveMerge = field(default_factory=AdaptiveMerge)
    schedule: CheckpointSchedule = PAPER_SCHEDULES["config_3"]
    scope: Scope = "attention"
    proportional: bool = True
    levels: Literal["auto", "all"] | tuple[int, ...] = "auto"
    stride: int | tuple[int, ...] = 2
    seed: int = 0

    def __post_init__(self) -> None:
        _expect("policy", self.policy, AdaptiveMerge)
        _expect("schedule", self.schedule, CheckpointSchedule)
        if self.scope not in SCOPES:
            raise ValueError(f"scope is {self.scope!r}; expected one of {SCOPES}")
        if isinstance(self.levels, str) and self.levels not in ("auto", "all"):
            raise ValueError(f"levels is {self.levels!r}; expected 'auto', 'all' or factors such as (1, 2)")
        if isinstance(self.levels, int):
            raise ValueError(f"levels is {self.levels!r}; expected 'auto', 'all' or a tuple such as (1, 2)")
        if not isinstance(self.levels, str):
            object.__setattr__(self, "levels", tuple(self.levels))
        if not isinstance(self.stride, int):
            object.__setattr__(self, "stride", tuple(self.stride))
        TokenGrid((1, 1), self.stride)

    def to_json(self) -> str:
        """The recipe as a JSON object."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> MergeRecipe:
        """The recipe that `to_json` wrote.

        Raises:
            ValueError: If the text is not JSON, no recipe, or a value is out of range.
            TypeError: If a field is unknown.
        """
        values = json.loads(text)
        missing = [name for name in ("policy", "schedule") if not isinstance(values, dict) or name not in values]
        if missing:
            raise ValueError(f"not a recipe: {missing[0]} is missing; expected the object that to_json writes")
        policy = AdaptiveMerge(**values.pop("policy"))
        return cls(policy, CheckpointSchedule(**values.pop("schedule")), **values)


def _expect(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {value!r}; expected a {kind.__name__}, such as {kind.__name__}(...)")


RECIPES: Mapping[str, MergeRecipe] = MappingProxyType(
    {
        "default": MergeRecipe(AdaptiveMerge(spare="fill")),
        "paper": MergeRecipe(proportional=False),
        "keys": MergeRecipe(AdaptiveMerge(spare="fill"), scope="keys"),
        "tomesd": MergeRecipe(
            AdaptiveMerge(threshold=-1, capacity=0.25, spare="fill", destination="random"),
            CheckpointSchedule.every(1, 50),
            proportional=False,
        ),
    }
)
"""Recipes by name: "default"; "paper", to the letter; "keys", the closest to the unmerged picture; "tomesd", half of
the tokens, matched anew at every step."""
