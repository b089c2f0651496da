"""Cached Adaptive Token Merging: the names that most programs need, each imported when it is first used.

`import catome` imports neither torch nor diffusers. Everything else is in `catome_core` and `catome_adapters`.

Examples:
    >>> import catome
    >>> catome.attach.__module__
    'catome_adapters.attach'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from catome_adapters import RECIPES, CalibratedRecipe, MergeRecipe, attach, detach, sessions
    from catome_bench.calibrate import Calibration, calibrate
    from catome_bench.compare import Compared, compare
    from catome_bench.models import load_shipped
    from catome_bench.sweep import Swept, sweep
    from catome_core import AdaptiveMerge, Lattice, MergedBlock, PairCache

__version__ = "0.2.0"

__all__ = [
    "RECIPES",
    "AdaptiveMerge",
    "CalibratedRecipe",
    "Calibration",
    "Compared",
    "Lattice",
    "MergeRecipe",
    "MergedBlock",
    "PairCache",
    "Swept",
    "attach",
    "calibrate",
    "compare",
    "detach",
    "load_shipped",
    "sessions",
    "sweep",
]

_HOMES = {
    "RECIPES": "catome_adapters",
    "AdaptiveMerge": "catome_core",
    "CalibratedRecipe": "catome_adapters",
    "Calibration": "catome_bench.calibrate",
    "Compared": "catome_bench.compare",
    "Lattice": "catome_core",
    "MergeRecipe": "catome_adapters",
    "MergedBlock": "catome_core",
    "PairCache": "catome_core",
    "Swept": "catome_bench.sweep",
    "attach": "catome_adapters",
    "calibrate": "catome_bench.calibrate",
    "compare": "catome_bench.compare",
    "detach": "catome_adapters",
    "load_shipped": "catome_bench.models",
    "sessions": "catome_adapters",
    "sweep": "catome_bench.sweep",
}


if not TYPE_CHECKING:  # For type checkers, a module with this function has every name, also a misspelled one.

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
