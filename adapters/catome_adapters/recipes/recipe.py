"""What to merge, where and when, as one value that travels as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, get_args

from catome_adapters.hooks.scopes import SCOPES
from catome_adapters.recipes.fields import Stride, check_during, check_later, check_levels, check_stride, kind_of_policy
from catome_adapters.recipes.saved import load_text, save_text
from catome_core import PAPER_SCHEDULES, AdaptiveMerge, CheckpointSchedule, Lattice, checks

Metric = Literal["input", "output"]
METRICS: tuple[Metric, ...] = get_args(Metric)


@dataclass(frozen=True)
class MergeRecipe:
    """Everything that `attach` needs to know.

    Args:
        policy: How tokens are matched and merged. With `policy.capacity=None` the session moves the capacity along
            a ladder after every checkpoint, to the shortest sequence at which nothing overflows; a number fixes it.
            Or a `Lattice`, with scope="keys": queries attend to one token of every cell, another one in every step.
        schedule: The steps that recompute the pairs; a lattice has none.
        scope: "attention" merges around self-attention (paper), "keys" merges only its keys and values (values
            are means, keys those of the anchors), "block" runs the whole transformer block on merged tokens.
            "progressive" is for models that are called once per input: every block merges, between its attention and
            its feed-forward, some of the tokens that the blocks before it have left, and only the last one unmerges
            (ToMe, 2023). Every other token is a destination, whatever `stride` says, so a block leaves 1 / 2 +
            policy.capacity of its tokens. The keys that attention compares decide which: the threshold plays no part.
        proportional: Attention weighs every key by the number of tokens it stands for.
        levels: "auto" takes the levels where merging is predicted to gain 3 % of the network's time, and merges only
            where it gains as much; "top" takes the level with the most tokens (paper: D1 and U1), and merges where it
            gains any time. "all" takes every level, a tuple the levels named by their downsampling factor, such as
            (1, 2): these two merge in every call.
        stride: Cell size of the grid, one destination per cell: one number for height and width, or a pair, with frames
            each by itself; or a number for every dimension of a video.
        seed: Seed of the destinations of `policy.destination="random"`, or the step that a moving lattice begins with.
        metric: What is matched: "input" the block's input (paper), "output" what self-attention returns, or with
            scope="block" what the block does (DiTo, 2026). Then a step that recomputes pairs runs unmerged.
        segment: With scope="block", how many consecutive blocks at most share one merge before the first and one
            unmerge after the last.
        during: The part of the run in which tokens merge, as fractions of its steps: step s of n merges if
            during[0] <= s / n < during[1]. Outside it the model runs as if nothing were attached. "auto" leaves it to
            `attach`: the last 70 % of the run in transformers that denoise, where the first steps lay out the picture,
            and all of it elsewhere.
        later: The cells of a lattice after the first steps that merge: pairs of a fraction of `during`, from which they
            hold, and their stride. stride=2 with ((0.25, (2, 4)),) is a quarter of the keys in the first quarter of
            `during` and an eighth after it: what the first steps get wrong, no later one repairs.

    Raises:
        TypeError: If a value has another type; "no" is not False, and True is not 1.
        ValueError: If a value is out of range, or two do not fit.

    Examples:
        >>> recipe = MergeRecipe(AdaptiveMerge(threshold=0.8), scope="block")
        >>> MergeRecipe.from_json(recipe.to_json()) == recipe
        True
    """

    policy: AdaptiveMerge | Lattice = field(default_factory=lambda: AdaptiveMerge(spare="fill"))
    schedule: CheckpointSchedule = PAPER_SCHEDULES["config_3"]
    scope: str = "attention"
    proportional: bool = True
    levels: Literal["auto", "top", "all"] | tuple[int, ...] = "auto"
    stride: Stride = 2
    seed: int = 0
    metric: Metric = "input"
    segment: int = 1
    during: tuple[float, float] | Literal["auto"] = (0.0, 1.0)
    later: tuple[tuple[float, Stride], ...] = ()

    def __post_init__(self) -> None:
        policies = "an AdaptiveMerge, such as AdaptiveMerge(threshold=0.7), or a Lattice"
        checks.instance("policy", self.policy, (AdaptiveMerge, Lattice), policies)
        example = "a CheckpointSchedule, such as CheckpointSchedule((0, 10, 40), of=50)"
        checks.instance("schedule", self.schedule, CheckpointSchedule, example)
        checks.one_of("scope", self.scope, tuple(SCOPES))
        checks.flag("proportional", self.proportional)
        checks.one_of("metric", self.metric, METRICS)
        checked = {
            "levels": check_levels(self.levels),
            "stride": check_stride(self.stride),
            "seed": checks.integer("seed", self.seed, "a number that random destinations are drawn with"),
            "segment": checks.integer("segment", self.segment, "a number of blocks, 1 or more", least=1),
            "during": check_during(self.during),
            "later": check_later(self.later),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if error := SCOPES[self.scope].recipe_error(self.policy, self.segment):
            raise ValueError(f"scope is {self.scope!r} with {error}")
        if isinstance(self.policy, Lattice) and self.metric == "output":
            raise ValueError(f"metric is 'output' with {self.policy}, which matches nothing; use metric='input'")
        if self.later and not isinstance(self.policy, Lattice):
            raise ValueError(f"later is {self.later} with {self.policy}, whose pairs hold over steps; use a Lattice")

    def merges_at(self, step: int, total: int) -> bool:
        """Whether tokens merge in step `step`, from 0, of a run of `total`.

        Examples:
            >>> recipe = MergeRecipe(during=(0.2, 0.8))
            >>> [step for step in range(10) if recipe.merges_at(step, 10)]
            [2, 3, 4, 5, 6, 7]
        """
        first, last = self.merging_part
        return first <= step / total < last

    @property
    def merging_part(self) -> tuple[float, float]:
        """The part of the run in which tokens merge.

        Raises:
            ValueError: If `during` is "auto", since it is unknown what network this is for.
        """
        if self.during == "auto":
            raise ValueError("during is 'auto', which only attach can decide; give two fractions, such as (0.3, 1.0)")
        return self.during

    @property
    def part_bounds(self) -> tuple[float, ...]:
        """Where the parts of the run with one kind of cells begin, and the last one ends, as fractions of its steps."""
        first, last = self.merging_part
        return (first, *(first + begin * (last - first) for begin, _ in self.later), last)

    def part_at(self, step: int, total: int) -> int:
        """The part of the run, from 0, whose cells hold in step `step`, from 0, of a run of `total`.

        Examples:
            >>> recipe = MergeRecipe(Lattice(), scope="keys", during=(0.2, 1.0), later=((0.25, (2, 4)),))
            >>> [recipe.part_at(step, 10) for step in range(2, 6)]
            [0, 0, 1, 1]
        """
        # A third and half of the rest are two thirds, whatever rounding makes of them.
        return sum(begin <= step / total + 1e-9 for begin in self.part_bounds[1:-1])

    def strides(self, shape: tuple[int, ...], part: int = 0) -> Stride:
        """The cell size on a grid of this size, in a part of the run.

        Raises:
            ValueError: If the recipe's stride has another number of dimensions.

        Examples:
            >>> MergeRecipe(stride=2).strides((5, 4, 6)), MergeRecipe(stride=(2, 4)).strides((5, 4, 6))
            ((1, 2, 2), (1, 2, 4))
        """
        stride = self.later[part - 1][1] if part else self.stride
        if isinstance(stride, int):
            return stride if len(shape) == 2 else (1, *(stride,) * (len(shape) - 1))
        if len(stride) > len(shape):
            raise ValueError(f"stride is {stride}, and the grid is {shape}; expected a number for each dimension")
        return (1,) * (len(shape) - len(stride)) + stride

    def to_json(self) -> str:
        """The recipe as a JSON object."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> MergeRecipe:
        """The recipe that `to_json` wrote; errors name the path of the field, such as `policy.threshold`.

        Raises:
            ValueError: If the text is not JSON, a field is missing, or a value is out of range.
            TypeError: If a field is unknown, or a value has another type.
        """
        values = checks.fields_of(cls, json.loads(text), "", required=("policy", "schedule"))
        values["policy"] = checks.make(kind_of_policy(values["policy"]), values["policy"], "policy")
        values["schedule"] = checks.make(CheckpointSchedule, values["schedule"], "schedule", required=("steps", "of"))
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Write the recipe to a file as JSON; a file that is there is replaced, as a whole or not at all.

        Raises:
            OSError: If the file cannot be written.
        """
        save_text(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> MergeRecipe:
        """The recipe in a file that `save` wrote; errors of `from_json` begin with the name of the file.

        Raises:
            OSError: If the file cannot be read.

        Examples:
            >>> from tempfile import TemporaryDirectory
            >>> with TemporaryDirectory() as folder:
            ...     MergeRecipe(scope="block").save(f"{folder}/mine.json")
            ...     print(MergeRecipe.load(f"{folder}/mine.json").scope)
            block
        """
        return load_text(path, cls.from_json)
