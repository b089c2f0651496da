"""What `catome bench` measures by default, for each kind of device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from catome_bench.names import LEVELS
from catome_bench.races import blocks, networks


@dataclass(frozen=True, kw_only=True)
class Suite:
    """The defaults for one kind of device.

    Attributes:
        dtype: Dtype of weights and tokens.
        modes: Ways to run blocks; the last one is not for whole networks.
        networks: Ways to run whole networks.
        levels: The levels out of `LEVELS` that run by default.
        cases: Blocks.
        models: Whole networks.
        repeats: Timed rounds.
        seconds: No measurement starts later than this.
        compiled: Names of the contenders in compiled races over blocks; None means all.
    """

    dtype: torch.dtype
    modes: tuple[str, ...]
    networks: tuple[str, ...]
    levels: tuple[str, ...]
    cases: tuple[str, ...]
    models: tuple[str, ...]
    repeats: int
    seconds: float
    compiled: tuple[str, ...] | None = None


# Compiling takes most of a GPU's time: one graph per contender, two for those with checkpoints.
HEADLINES = (
    "unpatched",
    "free lattice",
    "lattice",
    "lattice, near",
    "free attention",
    "free keys",
    "free block",
    "attention, proportional",
    "keys, proportional",
    "block",
    "block, proportional",
)

# The most important ones first.
GPU_CASES = (
    "flux-1024-single",
    "sdxl-1024-deep",
    "wan-480p",
    "sd15-512",
    "sd15-1024",
    "sdxl-1024-top",
    "flux-1024-double",
    "pixart-1024",
)

SUITES = {
    "cpu": Suite(
        dtype=torch.float32,
        modes=("eager", "compiled"),
        networks=("eager", "regional"),
        levels=("block", "check", "kernels", "operations", "ladder"),
        cases=blocks.SMALL_CASES,
        models=networks.SMALL_NETWORKS,
        repeats=7,
        seconds=float("inf"),
    ),
    "gpu": Suite(
        dtype=torch.bfloat16,
        modes=("eager", "compiled", "cuda graphs"),
        networks=("eager", "regional"),
        levels=LEVELS[:-2],
        cases=GPU_CASES,
        models=tuple(networks.NETWORKS),
        repeats=30,
        seconds=420.0,
        compiled=HEADLINES,
    ),
}
"""The GPU suite ends within eight minutes: a measurement that has started when its seconds are over still finishes."""
