"""What to merge, where and when, as one value that travels as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Literal, get_args

from catome_adapters.hooks.scopes import SCOPES
from catome_core import PAPER_SCHEDULES, AdaptiveMerge, CheckpointSchedule, TokenGrid

Metric = Literal["input", "output"]
METRICS: tuple[Metric, ...] = get_args(Metric)
LEVELS = ("auto", "top", "all")


@dataclass(frozen=True)
class MergeRecipe:
    """Everything that `attach` needs to know.

    Args:
        policy: How tokens are matched and merged. With `policy.capacity=None` the session moves the capacity along
            a ladder after every checkpoint, to the shortest sequence at which nothing overflows; a number fixes it.
        schedule: The steps that recompute the pairs.
        scope: "attention" merges around self-attention (paper), "keys" merges only its keys and values (values
            are means, keys those of the anchors), "block" runs the whole transformer block on merged tokens.
            "progressive" is for models that are called once per input: every block merges, between its attention and
            its feed-forward, some of the tokens that the blocks before it have left, and only the last one unmerges
            (ToMe, 2023). Every other token is a destination, whatever `stride` says, so a block leaves
            1 / 2 + policy.capacity of its tokens: 0.46 merges one in 25, 0.5 none. The similarity of the keys that
            attention compares decides which tokens merge, not how many: the threshold plays no part.
        proportional: Attention weighs every key by the number of tokens it stands for.
        levels: "auto" takes the levels where merging is predicted to gain 3 % of the network's time, and merges only
            where it gains as much; "top" takes the level with the most tokens (paper: D1 and U1), and merges where it
            gains any time. "all" takes every level, a tuple the levels named by their downsampling factor, such as
            (1, 2): these two merge in every call.
        stride: Cell size of the grid, one destination per cell: one number for height and width, with frames each by
            itself, or a number for every dimension.
        seed: Seed of the destinations of `policy.destination="random"`.
        metric: What is matched: "input" the block's input (paper), "output" what self-attention returns, or with
            scope="block" what the block does (DiTo, 2026). Then a step that recomputes pairs runs unmerged.
        segment: With scope="block", how many consecutive blocks at most share one merge before the first and one
            unmerge after the last.
        during: The part of the run in which tokens merge, as fractions of its steps: step s of n merges if
            during[0] <= s / n < during[1]. Outside it the model runs as if nothing were attached.

    Raises:
        ValueError: If a value is out of range.

    Examples:
        >>> recipe = MergeRecipe(AdaptiveMerge(threshold=0.8), scope="block")
        >>> MergeRecipe.from_json(recipe.to_json()) == recipe
        True
    """

    policy: AdaptiveMerge = field(default_factory=AdaptiveMerge)
    schedule: CheckpointSchedule = PAPER_SCHEDULES["config_3"]
    scope: str = "attention"
    proportional: bool = True
    levels: Literal["auto", "top", "all"] | tuple[int, ...] = "auto"
    stride: int | tuple[int, ...] = 2
    seed: int = 0
    metric: Metric = "input"
    segment: int = 1
    during: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        _expect("policy", self.policy, AdaptiveMerge)
        _expect("schedule", self.schedule, CheckpointSchedule)
        _expect_one_of("scope", self.scope, tuple(SCOPES))
        _expect_one_of("metric", self.metric, METRICS)
        self._check_levels()
        self._check_segment()
        self._check_during()
        self._freeze_lists()
        TokenGrid((1,) * (len(self.stride) if isinstance(self.stride, tuple) else 2), self.stride)

    def _freeze_lists(self) -> None:
        """JSON has lists, which have no hash."""
        for name in ("levels", "stride", "during"):
            value = getattr(self, name)
            if not isinstance(value, str | int):
                object.__setattr__(self, name, tuple(value))

    def _check_levels(self) -> None:
        if isinstance(self.levels, str) and self.levels not in LEVELS:
            raise ValueError(f"levels is {self.levels!r}; expected one of {LEVELS} or factors such as (1, 2)")
        if isinstance(self.levels, int):  # pyright: ignore[reportUnnecessaryIsInstance]: JSON may hold one
            raise ValueError(f"levels is {self.levels!r}; expected one of {LEVELS} or a tuple such as (1, 2)")

    def _check_segment(self) -> None:
        if not isinstance(self.segment, int) or self.segment < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"segment is {self.segment!r}; expected a number of blocks, 1 or more")
        error = SCOPES[self.scope].recipe_error(self.policy, self.segment)
        if error:
            raise ValueError(f"segment is {self.segment} with scope={self.scope!r}{error}")

    def _check_during(self) -> None:
        pair = isinstance(self.during, (tuple, list)) and len(self.during) == 2  # pyright: ignore[reportUnnecessaryIsInstance]
        if not pair or not 0 <= self.during[0] < self.during[1] <= 1:
            raise ValueError(
                f"during is {self.during!r}; expected two rising fractions of the run, such as (0.2, 1.0) to leave "
                "the first fifth of the steps unmerged"
            )

    def merges_at(self, step: int, total: int) -> bool:
        """Whether tokens merge in step `step`, from 0, of a run of `total`.

        Examples:
            >>> recipe = MergeRecipe(during=(0.2, 0.8))
            >>> [step for step in range(10) if recipe.merges_at(step, 10)]
            [2, 3, 4, 5, 6, 7]
        """
        return self.during[0] <= step / total < self.during[1]

    def strides(self, shape: tuple[int, ...]) -> int | tuple[int, ...]:
        """The cell size on a grid of this size.

        Raises:
            ValueError: If the recipe's stride has another number of dimensions.

        Examples:
            >>> MergeRecipe(stride=2).strides((4, 6)), MergeRecipe(stride=2).strides((5, 4, 6))
            (2, (1, 2, 2))
        """
        if isinstance(self.stride, int):
            return self.stride if len(shape) == 2 else (1, *(self.stride,) * (len(shape) - 1))
        if len(self.stride) != len(shape):
            raise ValueError(f"stride is {self.stride}, and the grid is {shape}; expected a number for each dimension")
        return self.stride

    def to_json(self) -> str:
        """The recipe as a JSON object."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> MergeRecipe:
        """The recipe that `to_json` wrote.

        Raises:
            ValueError: If the text is not JSON, not a recipe, or a value is out of range.
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


def _expect_one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}; expected one of {known}")


RECIPES: Mapping[str, MergeRecipe] = MappingProxyType(
    {
        "default": MergeRecipe(AdaptiveMerge(spare="fill")),
        "paper": MergeRecipe(proportional=False, levels="top"),
        "keys": MergeRecipe(AdaptiveMerge(spare="fill"), scope="keys"),
        "tomesd": MergeRecipe(
            AdaptiveMerge(threshold=-1, capacity=0.25, spare="fill", destination="random"),
            CheckpointSchedule.every(1, 50),
            proportional=False,
            levels="top",
        ),
        "vit": MergeRecipe(
            AdaptiveMerge(threshold=-1, capacity=0.25, spare="fill"), CheckpointSchedule.every(1, 50), scope="block"
        ),
        "tome": MergeRecipe(
            AdaptiveMerge(threshold=-1, capacity=0.44, spare="fill"),
            CheckpointSchedule.every(1, 50),
            scope="progressive",
        ),
    }
)
"""Recipes by name: "default"; "paper", to the letter; "keys", the closest to the unmerged picture; "tomesd", half of
the tokens, matched anew at every step; "vit", half of the tokens of every block, for models that are called once per
input; "tome", for their classification: every block merges 6 % of the tokens that the blocks before it have left."""
