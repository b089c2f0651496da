"""Recipes of every scope, metric and segment, and a run of six steps of a network without a scheduler."""

from itertools import product

import torch
from torch import Tensor, nn

from catome_adapters import MergeRecipe
from catome_core import AdaptiveMerge, CheckpointSchedule
from models import noise, predict, sdxl_unet

Variant = tuple[str, str, int]
SCOPES, METRICS = ("attention", "keys", "block"), ("input", "output")
VARIANTS: list[Variant] = [(scope, metric, 1) for scope, metric in product(SCOPES, METRICS)]
VARIANTS += [("block", metric, segment) for metric, segment in product(METRICS, (2, 3))]
TWICE = CheckpointSchedule((0, 3), of=6)
TOTAL = 6


def deep_unet() -> nn.Module:
    """Three blocks to a transformer at level 2, one at level 4."""
    return sdxl_unet(transformer_layers_per_block=(1, 3, 1))


def small_unet() -> nn.Module:
    """One transformer of three blocks at level 2, and nothing else."""
    ends = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
    layers = {"transformer_layers_per_block": (1, 3), "mid_block_type": None}
    return sdxl_unet(block_out_channels=(8, 8), **ends, **layers)


def spell(variant: Variant) -> str:
    return "-".join(map(str, variant))


def make_recipe(
    variant: Variant,
    policy: type[AdaptiveMerge] = AdaptiveMerge,
    *,
    schedule: CheckpointSchedule = TWICE,
    proportional: bool = True,
    during: tuple[float, float] = (0.0, 1.0),
    levels: str = "all",
    **policy_options,
) -> MergeRecipe:
    scope, metric, segment = variant
    made = policy(**{"threshold": 0.7, "capacity": 0.25} | policy_options)
    return MergeRecipe(made, schedule, scope, proportional, levels, metric=metric, segment=segment, during=during)


def call(session, network: nn.Module, step: int, *, seed: int | None = None, batch: int = 2, size=(16, 16)) -> Tensor:
    """One call at a step of six, by default with another sample at every step."""
    session.begin_step(step, TOTAL)
    return predict(network, sample_of(step if seed is None else seed, batch, size))


def sample_of(seed: int, batch: int = 2, size: tuple[int, int] = (16, 16)) -> Tensor:
    return noise(batch, 4, *size, seed=seed)


def run(session, network: nn.Module) -> list[Tensor]:
    return [call(session, network, step) for step in range(TOTAL)]


def unpatched(network: nn.Module) -> list[Tensor]:
    return [predict(network, sample_of(step)) for step in range(TOTAL)]


def differing(some: list[Tensor], others: list[Tensor]) -> list[int]:
    return [step for step, (one, other) in enumerate(zip(some, others, strict=True)) if not torch.equal(one, other)]
