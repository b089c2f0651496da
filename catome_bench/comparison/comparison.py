"""The calls of a comparison, in the order in which they are made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from torch import Tensor
from tqdm import tqdm

from catome_adapters import MergeSession
from catome_adapters.recipes.calibrated import Recipe
from catome_bench.comparison.attached import attached
from catome_bench.comparison.calls import check_calls
from catome_bench.comparison.drawing import Call, draw, is_compiled
from catome_bench.comparison.rows import ComparedSample

UNMERGED = "unmerged"

Take = tuple[int, int]
"""The number of a call, and a seed."""


class Comparison:
    """The same calls without merging and with every recipe.

    Args:
        pipe: A pipeline without a session.
        recipes: By name.
        calls: Each is made with every seed.
        seeds: The seeds.

    Attributes:
        variants: "unmerged", and the recipes by name.
        takes: Every call with every seed.
        alternates: Whether all variants make a call before the next call; otherwise, since attaching compiles anew, all
            calls are made by one variant after the other.

    Raises:
        RuntimeError: If the pipeline has a session.
        TypeError: If it has no network.
        ValueError: If there is nothing to compare, or a recipe does not fit the pipeline.
    """

    def __init__(self, pipe: Any, recipes: Mapping[str, Recipe], calls: Sequence[Call], seeds: Sequence[int]) -> None:
        self.pipe, self.calls = pipe, calls
        self.variants: dict[str, Recipe | None] = {UNMERGED: None, **recipes}
        self.takes: list[Take] = list(product(range(len(calls)), seeds))
        _check(pipe, recipes, self.takes, calls)
        self.alternates = not is_compiled(pipe)
        self._unmerged: dict[Take, Tensor] = {}

    def draw_all(self, progress: bool) -> dict[str, list[ComparedSample]]:
        """Make all calls, under a bar if there is to be one.

        Returns:
            The samples of every variant; the first one is the warm-up, of the first take.

        Raises:
            TypeError: If a call returns no pictures.
            ValueError: If what is drawn is not finite, or not of one size.
        """
        samples: dict[str, list[ComparedSample]] = defaultdict(list)
        calls = len(self.variants) * (1 + len(self.takes))
        with tqdm(total=calls, unit="call", disable=not progress) as bar:
            for name, takes in self._turns():
                bar.set_description(name)
                with attached(self.pipe, self.variants[name]) as session:
                    for take in takes:
                        samples[name].append(self._draw(name, session, take))
                        bar.update()
        return samples

    def _turns(self) -> Iterator[tuple[str, list[Take]]]:
        """Which variant draws which takes, between attaching and detaching."""
        first, *_ = self.takes
        if not self.alternates:
            yield from ((name, [first, *self.takes]) for name in self.variants)
            return
        yield from ((name, [first]) for name in self.variants)
        yield from ((name, [take]) for take in self.takes for name in self.variants)

    def _draw(self, name: str, session: MergeSession | None, take: Take) -> ComparedSample:
        number, seed = take
        try:
            drawn = draw(self.pipe, self.calls[number], seed)
            # Unmerged pictures are drawn before all others.
            unmerged = self._unmerged.setdefault(take, drawn.pictures)
            return ComparedSample.of(drawn, unmerged, session.summary().merged_fraction if session else 0.0)
        except ValueError as error:
            raise ValueError(f"{name}, seed {seed}: {error}") from error


def _check(pipe: Any, recipes: Mapping[str, Recipe], takes: Sequence[Take], calls: Sequence[Call]) -> None:
    check_calls(pipe, calls)
    if not recipes or UNMERGED in recipes or not takes:
        given = f"{len(recipes)} recipes, {list(recipes)}, and {len(takes)} calls"
        raise ValueError(f"got {given}; expected at least one recipe, none named {UNMERGED!r}, one call and one seed")
    for name, recipe in recipes.items():
        try:
            with attached(pipe, recipe):
                pass
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
