"""Recipes that have names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from types import MappingProxyType

from catome_adapters.recipes.fields import Stride
from catome_adapters.recipes.recipe import MergeRecipe
from catome_core import AdaptiveMerge, CheckpointSchedule, Lattice


class _Named(dict[str, MergeRecipe]):
    def __missing__(self, name: object) -> MergeRecipe:
        nearest = get_close_matches(str(name), self, 1)
        meant = f"; did you mean {nearest[0]!r}?" if nearest else "."
        raise KeyError(f"no recipe is named {name!r}{meant} The names are {sorted(self)}")


EVERY_STEP = CheckpointSchedule.every(1, 50)
"""Of a run of any length: where every step is a checkpoint, rescaling keeps it so."""
HALF: Stride = (1, 2)
CLOSE = MergeRecipe(Lattice(near="auto"), scope="keys", stride=HALF, during="auto")
BALANCED = replace(CLOSE, later=((0.25, 2),))
"""In the first quarter of the steps that merge, half of the keys: in some pictures they decide how it goes on."""

RECIPES: Mapping[str, MergeRecipe] = MappingProxyType(
    _Named(
        {
            "default": BALANCED,
            "close": CLOSE,
            "balanced": BALANCED,
            "fast": replace(CLOSE, later=((0.25, (2, 4)),)),
            "adaptive": MergeRecipe(),
            "paper": MergeRecipe(AdaptiveMerge(), proportional=False, levels="top"),
            "keys": MergeRecipe(scope="keys"),
            "todo": MergeRecipe(Lattice(moving=False), scope="keys", proportional=False, levels="top"),
            "tomesd": MergeRecipe(
                AdaptiveMerge(threshold=-1, capacity=0.25, spare="fill", destination="random"),
                EVERY_STEP,
                proportional=False,
                levels="top",
            ),
            "vit": MergeRecipe(AdaptiveMerge(threshold=-1, capacity=0.25, spare="fill"), EVERY_STEP, scope="block"),
            "tome": MergeRecipe(
                AdaptiveMerge(threshold=-1, capacity=0.44, spare="fill"),
                EVERY_STEP,
                scope="progressive",
            ),
        }
    )
)
"""Recipes by name. By goal: "close", "balanced" and "fast", whose queries see half, a quarter and an eighth of the far
keys, others in every step, and all of them half at first; "default" is "balanced". By method: "adaptive",
tokens above a threshold merge around self-attention; "keys", only as its keys; "paper", to the letter; "todo", a
quarter of the keys, the same in every step; "tomesd", half of the tokens, matched anew at every step. For models that
are called once per input: "vit", half of the tokens of every block; "tome", for classification: every block merges 6 %
of the tokens that the blocks before it have left."""
